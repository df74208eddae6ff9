"""A pull under way: what has come for it, and whether it is over. No I/O, no clock.

Source: ADR-13 (status codes).
"""

import asyncio
from typing import Final

from dialback.metrics.names import PullErrorKind

NO_MESSAGES: Final = frozenset({"404", "408"})
"""Statuses of a pull that ended as it should: there is nothing, or it expired."""

GIVEN_UP: Final = "given up"
"""In place of a status: nobody waits for this pull any more."""

TIMED_OUT: Final = "no answer to a pull"
"""In place of a status: it was waited for long enough."""


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

    def time_out(self) -> None:
        """It should have been answered by now."""
        self._finish(TIMED_OUT)

    def _finish(self, status: str) -> None:
        if not self.done.done():
            self.done.set_result(status)
