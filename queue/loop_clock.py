"""Whether the event loop turns, and how old what it hands over may be. No I/O here."""

from typing import Final

_STANDSTILL: Final = 1.0  # seconds without a turn: two of the worker's pulses
_AFTERMATH: Final = 1.0  # seconds of turning after which what came meanwhile is handed over


class LoopClock:
    """Knows since when what the event loop hands over may have lain in the socket.

    After a standstill the clock may tick before the messages that came meanwhile have gone
    through nats-py's tasks, and other tasks may block the loop again in between. So a
    standstill counts until the loop has turned for a while.
    """

    def __init__(self, now: float) -> None:
        """Start at a monotonic time."""
        self.last = now
        self._stood_still = now, now  # from, until

    def turned(self, now: float) -> None:
        """The event loop turns."""
        if now - self.last > _STANDSTILL:
            self._stood_still = self._standstill(now)
        self.last = now

    def read_after(self, now: float) -> float:
        """Return a time after which a message that is handed over now was delivered."""
        begin, end = self._standstill(now) if now - self.last > _STANDSTILL else self._stood_still
        return begin if now - end <= _AFTERMATH else self.last

    def _standstill(self, now: float) -> tuple[float, float]:
        """Return the standstill that lasts until now."""
        begin, end = self._stood_still
        return (begin if self.last - end <= _AFTERMATH else self.last), now
