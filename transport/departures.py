"""When what connections have queued leaves, for many of them at a time.

Those that are due in the same millisecond share a timer: one of its own costs a connection about
as much as two small items, and an event loop's timers are no more exact than that.
"""

import asyncio
from typing import Final, Protocol
from weakref import WeakKeyDictionary

_TICKS: Final = 1000  # in a second


class Departing(Protocol):
    """What waits for its time."""

    def depart(self, tick: int) -> None:
        """The time is there."""


class Departures:
    """Those of one event loop."""

    __slots__ = ("_due", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for nobody yet; use :func:`departures_of`."""
        self._loop = loop
        self._due: dict[int, list[Departing]] = {}

    def add(self, departing: Departing, now: float, delay: float) -> int:
        """Call ``departing`` in ``delay`` seconds, to half a millisecond.

        There is no way to cancel: who does not wait any more ignores the tick.

        Args:
            departing: Whom to call.
            now: The monotonic time in seconds.
            delay: Seconds from then.

        Returns:
            The tick that it is told, never 0.
        """
        tick = round((now + delay) * _TICKS)
        waiting = self._due.get(tick)
        if waiting is None:
            self._due[tick] = [departing]
            self._loop.call_later(tick / _TICKS - now, self._leave, tick)
        else:
            waiting.append(departing)
        return tick

    def _leave(self, tick: int) -> None:
        for departing in self._due.pop(tick):
            try:
                departing.depart(tick)
            except Exception as error:  # the others have to leave, too
                told = {"message": "what was queued could not leave", "exception": error}
                self._loop.call_exception_handler(told)


_OF: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Departures]] = WeakKeyDictionary()


def departures_of(loop: asyncio.AbstractEventLoop) -> Departures:
    """Return those of an event loop."""
    departures = _OF.get(loop)
    if departures is None:
        departures = _OF[loop] = Departures(loop)
    return departures
