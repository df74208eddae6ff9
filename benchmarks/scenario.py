"""What a scenario is, and what it finds: figures of several contestants, and goals. No I/O."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from benchmarks.measurement import Run, Spread, paired_ratio


class Metric(Enum):
    """What of a run is compared."""

    RATE = "rate"
    P50 = "p50"
    P99 = "p99"
    WORKER_MEMORY = "worker memory"

    def of(self, run: Run) -> float:
        """The figure of one run: per second, in seconds or in bytes."""
        match self:
            case Metric.RATE:
                return run.rate
            case Metric.P50:
                return run.percentile(50)
            case Metric.P99:
                return run.percentile(99)
            case Metric.WORKER_MEMORY:
                return run.memory["worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A ratio that is to hold: a contestant's figure to a peer's in the same run.

    Attributes:
        ours: The contestant.
        peer: The other one.
        metric: What is compared.
        at_least: The median ratio must not be below this, if given.
        at_most: The median ratio must not be above this, if given.
    """

    ours: str
    peer: str
    metric: Metric
    at_least: float | None = None
    at_most: float | None = None

    def ratio(self, runs: Mapping[str, Sequence[Run]]) -> Spread:
        """Our figure over the peer's, run by run."""
        return paired_ratio(
            [self.metric.of(run) for run in runs[self.ours]],
            [self.metric.of(run) for run in runs[self.peer]],
        )

    def met(self, runs: Mapping[str, Sequence[Run]]) -> bool:
        """Whether the median ratio is within the bounds."""
        median = self.ratio(runs).median
        low = self.at_least is None or median >= self.at_least
        high = self.at_most is None or median <= self.at_most
        return low and high


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one scenario measured under one load.

    Attributes:
        title: The load, half a sentence: ``64 in flight``.
        unit: What is counted, in the plural: ``items``, ``requests``, ``jobs``.
        latency: What the latencies are, half a sentence; empty if none are taken.
        runs: Of each contestant, by name, in the order to be shown.
        goals: What is to hold.
        notes: Sentences that a reader needs: settings of a peer, for instance.
    """

    title: str
    unit: str
    latency: str = ""
    runs: Mapping[str, Sequence[Run]]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """How much to measure.

    Attributes:
        full: Whether to take the time for full loads; else smaller ones that keep the ratios.
        rounds: Runs of each contestant.
        progress: Told a line about what is going on.
    """

    full: bool = False
    rounds: int = 3
    progress: Callable[[str], None] = field(default=lambda _: None)


Measure: TypeAlias = Callable[[Lab], Awaitable[list[Figures]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question, and how it is answered.

    Attributes:
        letter: ``a`` to ``k``.
        title: What is measured, half a sentence.
        measure: Measures it, with contestants in alternation.
    """

    letter: str
    title: str
    measure: Measure
