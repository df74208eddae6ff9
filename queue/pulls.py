"""Pulls under way: what has come for them, and whether they are over. No I/O, no clock.

Source: ADR-13 (status codes).
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from dialback.metrics.names import PullErrorKind

NO_MESSAGES: Final = frozenset({"404", "408"})
"""Statuses of a pull that ended as it should: there is nothing, or it expired."""

GIVEN_UP: Final = "given up"
"""In place of a status: nobody waits for this pull any more."""

_HEARTBEAT: Final = "100"


class PullFailedError(Exception):
    """A pull went wrong; start over after a while."""

    def __init__(self, kind: PullErrorKind, reason: str) -> None:
        """Say what kind of error it is, and the status or what else is known."""
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Probe:
    """One ``no_wait`` pull.

    Attributes:
        done: Its result is the status that ended it, or "" when all that was wanted came.
        received: Messages that came for its lane.
    """

    def __init__(self, lane: str, wanted: int, reply: str) -> None:
        """Begin to count."""
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.received = 0
        self._lane = lane
        self._wanted = wanted
        self._reply = reply

    def message(self, lane: str) -> None:
        """A message came; data cannot be attributed by its inbox, so its lane has to do."""
        if lane == self._lane:
            self.received += 1
            if self.received >= self._wanted:
                self._finish("")

    def status(self, reply: str, status: str) -> None:
        """A status came for some pull."""
        if reply == self._reply:
            self._finish(status)

    def give_up(self) -> None:
        """Wait no longer; messages under way still come."""
        self._finish(GIVEN_UP)

    def _finish(self, status: str) -> None:
        if not self.done.done():
            self.done.set_result(status)


class Linger:
    """One lingering pull on each of some lanes.

    Each lane's consumer has a leader of its own, so each must send its own heartbeats.

    Attributes:
        lanes: The lanes.
        arrived: Whether a message came.
        failed: Lane and status of the first strange answer.
    """

    def __init__(self, pulls: Mapping[str, str], now: float) -> None:
        """Begin at a monotonic time.

        Args:
            pulls: Reply subject to lane.
            now: Seconds.
        """
        self.lanes = frozenset(pulls.values())
        self.arrived = False
        self.failed: tuple[str, str] | None = None
        self._pulls = pulls
        self._heard = dict.fromkeys(pulls, now)

    def message(self) -> None:
        """A message came, of whichever lane."""
        self.arrived = True

    def status(self, reply: str, status: str, now: float) -> bool:
        """A status came for some pull; return whether it is a heartbeat of one of these."""
        lane = self._pulls.get(reply)
        if lane is None:
            return False
        self._heard[reply] = now
        if status != _HEARTBEAT and status not in NO_MESSAGES:
            self.failed = self.failed or (lane, status)
        return status == _HEARTBEAT

    def silence(self, now: float) -> float:
        """Return for how many seconds the quietest lane has not been heard.

        There may be no lane at all: the last free slot may have been taken just before.
        """
        return now - min(self._heard.values(), default=now)
