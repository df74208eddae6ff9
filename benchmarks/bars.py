"""What the chart shows: ratios, turned so that more is better. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measurement import Run, Spread
from benchmarks.report import Entry, ours
from benchmarks.scenario import Figures, Goal, Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One ratio: how many times better than a peer.

    Attributes:
        group: Letter of the scenario, and the load.
        label: The peer, and the metric if it is not the rate.
        ratio: Above 1 is better, whatever the metric.
        wanted: The smallest ratio that is a goal, or ``None``.
    """

    group: str
    label: str
    ratio: Spread
    wanted: float | None


def bars(entries: Sequence[Entry]) -> list[Bar]:
    """Return what is to be drawn: each goal, and the rate beside each other contestant's."""
    return [
        _bar(f"{entry.result.letter}  {figures.title}", figures, goal)
        for entry in entries
        for figures in entry.result.figures
        for goal in _comparisons(figures)
    ]


def _comparisons(figures: Figures) -> list[Goal]:
    """Return the goals of a load, and comparisons of what no goal speaks about."""
    goals = list(figures.goals)
    mine = ours(figures)
    spoken_of = {goal.peer for goal in goals}
    metric = goals[0].metric if goals else Metric.RATE
    goals += [
        Goal(ours=mine, peer=name, metric=metric)
        for name, runs in figures.runs.items()
        if name != mine and name not in spoken_of and _has(metric, runs)
    ]
    return goals


def _has(metric: Metric, runs: Sequence[Run]) -> bool:
    """Whether these runs took the metric."""
    try:
        for run in runs:
            metric.of(run)
    except (KeyError, ValueError):
        return False
    return True


def _bar(group: str, figures: Figures, goal: Goal) -> Bar:
    ratio, wanted = goal.ratio(figures.runs), goal.at_least
    if goal.metric is not Metric.RATE:  # less is better
        ratio = Spread(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
        wanted = 1 / goal.at_most if goal.at_most is not None else None
    metric = "" if goal.metric is Metric.RATE else f" ({goal.metric.value})"
    return Bar(group=group, label=f"{goal.peer}{metric}", ratio=ratio, wanted=wanted)
