"""How long pulls have gone unanswered although they should have been answered. No I/O, no clock.

A worker that is connected and has free slots always has a pull under way, and a server that
lives answers it: with a message, a status or a heartbeat every few seconds. Silence for minutes
means that this process pulls no more, or that nothing it sends arrives.
"""

from typing import Final

_LONGEST_STEP: Final = 1.0  # seconds; two of the worker's pulses


class Silence:
    """Adds up the seconds in which nothing was heard.

    Only time in which somebody looked counts: after a standstill of the event loop (or of the
    process) the answers that came meanwhile still lie in the socket.

    Attributes:
        seconds: How long it has lasted.
    """

    def __init__(self, now: float) -> None:
        """Start at a monotonic time, in seconds."""
        self.seconds = 0.0
        self._looked = now
        self._heard = 0.0

    def look(self, now: float, *, heard: float, expected: bool) -> None:
        """Take note of how things are; call it at least every second.

        Args:
            now: Monotonic time in seconds.
            heard: Time of the last sign of life, on any clock; only a change counts.
            expected: Whether there should be signs of life at all.
        """
        step, self._looked = min(now - self._looked, _LONGEST_STEP), now
        if heard != self._heard or not expected:
            self.seconds = 0.0
        else:
            self.seconds += step
        self._heard = heard
