import pytest

from benchmarks.measurement import Run, Spread
from benchmarks.scenario import Goal, Metric

FAST = [Run(units=300, seconds=1, latencies=[0.2], memory={"worker": 10})] * 3
SLOW = [Run(units=100, seconds=1, latencies=[0.1], memory={"worker": 20})] * 3


@pytest.mark.parametrize(
    ("metric", "figure"),
    [
        (Metric.RATE, 300),
        (Metric.P50, 0.2),
        (Metric.P99, 0.2),
        (Metric.WORKER_MEMORY, 10),
    ],
)
def test_a_metric_is_a_figure_of_a_run(metric: Metric, figure: float) -> None:
    assert metric.of(FAST[0]) == figure


@pytest.mark.parametrize(
    ("at_least", "at_most", "met"),
    [(3, None, True), (3.1, None, False), (None, 3, True), (None, 2.9, False), (2, 4, True)],
)
def test_a_goal_is_met_within_its_bounds(
    at_least: float | None, at_most: float | None, met: bool
) -> None:
    goal = Goal(ours="a", peer="b", metric=Metric.RATE, at_least=at_least, at_most=at_most)
    assert goal.ratio({"a": FAST, "b": SLOW}) == Spread(3, 3, 3)
    assert goal.met({"a": FAST, "b": SLOW}) is met
