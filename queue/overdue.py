"""Which queued requests nobody has served in time: decided here, read and answered elsewhere.

Pure. A request is looked at once: what is kept of it is its sequence and the time at which it
is overdue, so that a queue need not be read again to find those whose time has come.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dialback.transport.request_headers import DEADLINE_HEADERS

_NS: Final = 1_000_000_000
_MAX_DIGITS: Final = 19  # of Unix nanoseconds
MAX_WATCHED: Final = 100_000
"""Requests of one lane that are remembered at the same time: about 15 MB."""


def overdue_at(
    headers: Mapping[str, str], published_ns: int, *, unserved_limit: float
) -> int | None:
    """Return when a request that nobody has taken is overdue, Unix ns; ``None`` for never.

    Args:
        headers: Its NATS headers. The earlier one of its deadlines counts.
        published_ns: When the stream stored it, Unix nanoseconds.
        unserved_limit: Seconds a request without any deadline may wait; 0 for ever.
    """
    values = [headers.get(name, "") for name in DEADLINE_HEADERS]
    limits = [int(text) for text in values if _is_time(text)]
    if limits:
        return min(limits)
    return published_ns + round(unserved_limit * _NS) if unserved_limit > 0 else None


def _is_time(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


@dataclass(slots=True)
class Watch:
    """The undelivered requests of one lane that will be overdue some time.

    Attributes:
        seen: The last sequence that was looked at.
        capacity: How many are remembered. When it is full, nothing further is looked at until
            some are due or delivered: what comes later in the queue is younger.
    """

    seen: int = 0
    capacity: int = MAX_WATCHED
    _heap: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    @property
    def room(self) -> int:
        """How many more can be remembered."""
        return self.capacity - len(self._heap)

    @property
    def watched(self) -> int:
        """How many are remembered."""
        return len(self._heap)

    def start_after(self, delivered: int) -> None:
        """Forget what has been delivered meanwhile, once that makes room; skip it in the queue."""
        self.seen = max(self.seen, delivered)
        if self.room <= 0:
            self._heap = [entry for entry in self._heap if entry[1] > delivered]
            heapq.heapify(self._heap)

    def add(self, sequence: int, at_ns: int | None) -> None:
        """Note a request that was looked at, and when it is overdue."""
        self.seen = max(self.seen, sequence)
        if at_ns is not None:
            heapq.heappush(self._heap, (at_ns, sequence))

    def take_due(self, now_ns: int, *, delivered: int, limit: int) -> list[int]:
        """Return the sequences of at most ``limit`` overdue requests, and forget them.

        Args:
            now_ns: Unix nanoseconds.
            delivered: The lane's last delivered sequence: up to it a worker has, or had, the
                request and answers for it.
            limit: How many.
        """
        due: list[int] = []
        while self._heap and self._heap[0][0] <= now_ns and len(due) < limit:
            _, sequence = heapq.heappop(self._heap)
            if sequence > delivered:
                due.append(sequence)
        return due
