import pytest

from benchmarks.guard.bounds import BOUNDS, Unit, judge, report
from benchmarks.guard.hot_paths import HOT_PATHS, RAW

RAW_COST = 10_000.0
KEPT = {name: bound.instructions * RAW_COST for name, bound in BOUNDS.items()}


def test_every_hot_path_has_a_bound() -> None:
    assert set(BOUNDS) == set(HOT_PATHS) - {RAW}


def test_a_path_at_its_bound_is_kept() -> None:
    assert all(verdict.kept for verdict in judge(KEPT, RAW_COST, Unit.INSTRUCTIONS))


@pytest.mark.parametrize("path", BOUNDS)
def test_a_path_over_its_bound_is_named_with_what_to_do(path: str) -> None:
    costs = {**KEPT, path: KEPT[path] * 2}
    verdicts = judge(costs, RAW_COST, Unit.INSTRUCTIONS)
    assert [verdict.path for verdict in verdicts if not verdict.kept] == [path]
    *_, advice = report(verdicts, RAW_COST, Unit.INSTRUCTIONS)
    assert advice.startswith(f"{path} costs 2.0 times what it may.")
    assert BOUNDS[path].code in advice
    assert "bounds.py" in advice


def test_cpu_time_has_wider_bounds() -> None:
    assert all(bound.cpu_time > bound.instructions for bound in BOUNDS.values())
    costs = {name: bound.cpu_time * RAW_COST for name, bound in BOUNDS.items()}
    assert all(verdict.kept for verdict in judge(costs, RAW_COST, Unit.CPU_TIME))
    assert not any(verdict.kept for verdict in judge(costs, RAW_COST, Unit.INSTRUCTIONS))


@pytest.mark.parametrize("cost", [0.0, -1.0])
def test_a_cost_that_is_none_was_not_measured(cost: float) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        judge({"encode": cost}, RAW_COST, Unit.INSTRUCTIONS)
    with pytest.raises(ValueError, match="raw loop costs"):
        judge({"encode": 1.0}, cost, Unit.INSTRUCTIONS)
