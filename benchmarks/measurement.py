"""What one run of a contestant measured, and what several runs say together. No I/O.

Machines differ and are shared with others, so a figure counts only beside another one of the
same run: contestants take turns, medians are compared, and every median is shown with the
smallest and the largest figure behind it.
"""

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one contestant.

    Attributes:
        units: What was done: items, requests or jobs.
        seconds: How long it took, wall clock.
        cpu: CPU seconds of each role: ``worker``, ``client``, ``server``.
        latencies: Seconds, one for each observation; empty if none were taken.
        memory: Resident bytes of each role at the end.
    """

    units: int
    seconds: float
    cpu: Mapping[str, float] = field(default_factory=dict[str, float])
    latencies: Sequence[float] = ()
    memory: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds

    def cpu_per_unit(self, role: str) -> float:
        """CPU seconds of a role for one unit."""
        return self.cpu[role] / self.units

    def percentile(self, percent: float) -> float:
        """The latency, in seconds, that so many percent of the observations do not exceed.

        Raises:
            ValueError: If no latencies were taken.
        """
        if not self.latencies:
            raise ValueError("this run took no latencies")
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and what it is the median of.

    Attributes:
        median: The median.
        low: The smallest figure.
        high: The largest figure.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Summarise at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the ratios of runs that followed each other: of first to first, second to second."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


Contestant: TypeAlias = Callable[[], Awaitable[Run]]
"""Makes one run."""


async def alternate(
    contestants: Mapping[str, Contestant],
    rounds: int,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Run]]:
    """Let contestants take turns, each round in the opposite order of the last.

    Args:
        contestants: By name; the first round is in this order.
        rounds: Runs of each, after one that warms up and is not counted.
        progress: Told a line before each run.
    """
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    order = list(contestants)
    for number in range(rounds + 1):
        for name in order:
            progress(f"{name}: {'warm-up' if number == 0 else f'round {number} of {rounds}'}")
            run = await contestants[name]()
            if number:
                runs[name].append(run)
        order.reverse()
    return runs
