"""What a supervisor makes of its processes' ends: restart, give up, exit code. No I/O here."""

import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from dialback.worker_exit import WorkerExit

LEAST_DELAY: Final = 0.5  # seconds before the first restart; doubles with each
MOST_DELAY: Final = 30.0
STEADY: Final = 60.0  # seconds of life after which a process counts as healthy again
FRUITLESS: Final = 5  # starts in a row of which none became ready

_HOPELESS: Final = frozenset({2, 4, 77})  # wrong settings, other queue settings, refused user
_SIGNALLED: Final = 128
_SEVERITY: Final = (WorkerExit.CLEAN, WorkerExit.INTERRUPTED, WorkerExit.FORCED)


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the process again after ``delay`` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End everything with the process's exit code; ``why`` is a sentence."""

    why: str


Decision: TypeAlias = Restart | GiveUp


def _jitter() -> float:
    return random.uniform(0.8, 1.2)  # noqa: S311 -- not a secret


@dataclass(slots=True)
class _History:
    """One place for a process: what became of those that had it."""

    deaths: int = 0
    fruitless: int = 0


@dataclass(slots=True)
class Restarts:
    """Remembers how the processes ended, and decides.

    Attributes:
        processes: How many there are.
        jitter: Returns a factor near 1, so that they do not start all at once.
    """

    processes: int
    jitter: Callable[[], float] = _jitter
    _histories: dict[int, _History] = field(default_factory=dict[int, _History])

    def died(self, index: int, *, code: int, lived: float, ready: bool) -> Decision:
        """Decide what follows the end of a process that nobody had told to end.

        Args:
            index: Its number, from 0.
            code: Its exit code, from :func:`exit_code_of`.
            lived: Seconds from its start to its end.
            ready: Whether it had begun to pull.
        """
        if code in _HOPELESS and not ready:
            return GiveUp(f"a worker process ended with {code}: starting it again will not help")
        history = self._histories.setdefault(index, _History())
        history.fruitless = 0 if ready else history.fruitless + 1
        if self._all_fruitless():
            return GiveUp(f"each worker process ended {FRUITLESS} times without becoming ready")
        if lived >= STEADY:
            history.deaths = 0
        delay = min(MOST_DELAY, LEAST_DELAY * 2.0**history.deaths)
        history.deaths += 1
        return Restart(delay * self.jitter())

    def _all_fruitless(self) -> bool:
        counts = [history.fruitless for history in self._histories.values()]
        return len(counts) == self.processes and min(counts) >= FRUITLESS


def exit_code_of(returncode: int) -> int:
    """Return a shell's exit code: 128 plus the signal's number for a process that was killed."""
    return returncode if returncode >= 0 else _SIGNALLED - returncode


def code_when_told(returncode: int, *, ready: bool, held: int) -> int:
    """Return what the end of a process that was told to end counts as.

    One that had not begun to pull has dropped nothing, however it ended. Nor has one that holds
    nothing any more and was killed by a second SIGTERM on its last steps.
    """
    at_the_door = returncode == -signal.SIGTERM and held == 0
    return 0 if at_the_door or not ready else exit_code_of(returncode)


def worst(codes: Iterable[int]) -> int:
    """Return the supervisor's exit code: 0, 75, 143, then whatever is higher, 69 among them."""
    ranks = {int(code): rank for rank, code in enumerate(_SEVERITY)}
    return max(codes, key=lambda code: (ranks.get(code, len(ranks)), code), default=0)
