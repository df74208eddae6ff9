"""When what connections have queued leaves, for many of them at a time.

Those that are due in the same millisecond share a timer: one of its own costs a connection about
as much as two small items, and an event loop's timers are no more exact than that.
"""

import asyncio
from collections.abc import Iterator
from typing import Final, Protocol

from dialback.transport.per_loop import PerLoop

_TICKS: Final = 1000  # in a second


class Departing(Protocol):
    """What waits for its time."""

    def depart(self, tick: int) -> None:
        """The time is there."""


class Departures:
    """Those of one event loop, shared by its connections."""

    __slots__ = ("__weakref__", "_due")

    def __init__(self) -> None:
        """Wait for nobody yet; use :data:`DEPARTURES`."""
        self._due: dict[int, list[Departing]] = {}

    def add(
        self, departing: Departing, now: float, delay: float, loop: asyncio.AbstractEventLoop
    ) -> int:
        """Call ``departing`` in ``delay`` seconds, to half a millisecond.

        There is no way to cancel: who does not wait any more ignores the tick.

        Args:
            departing: Whom to call.
            now: The monotonic time in seconds.
            delay: Seconds from then.
            loop: The event loop.

        Returns:
            The tick that it is told, never 0.
        """
        tick = round((now + delay) * _TICKS)
        waiting = self._due.get(tick)
        if waiting is None:
            loop.call_later(tick / _TICKS - now, self._leave, tick, loop)
            self._due[tick] = [departing]
        else:
            waiting.append(departing)
        return tick

    def _leave(self, tick: int, loop: asyncio.AbstractEventLoop) -> None:
        self._go_on(iter(self._due.pop(tick)), tick, loop)

    def _go_on(
        self, leaving: Iterator[Departing], tick: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        try:
            for departing in leaving:
                departing.depart(tick)
        except BaseException:  # the loop's to report; the others have to leave, too
            loop.call_soon(self._go_on, leaving, tick, loop)
            raise


DEPARTURES: Final = PerLoop(Departures)
"""Those of each event loop."""
