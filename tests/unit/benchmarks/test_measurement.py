import pytest

from benchmarks.measurement import Run, Spread, alternate, paired_ratio


def test_a_run_has_a_rate_and_cpu_for_each_unit() -> None:
    run = Run(units=200, seconds=4.0, cpu={"worker": 0.5})
    assert run.rate == 50
    assert run.cpu_per_unit("worker") == 0.0025


@pytest.mark.parametrize(("percent", "latency"), [(0, 1), (50, 51), (99, 100), (100, 100)])
def test_a_percentile_is_one_of_the_observations(percent: float, latency: float) -> None:
    run = Run(units=1, seconds=1, latencies=list(range(100, 0, -1)))
    assert run.percentile(percent) == latency


def test_without_latencies_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no latencies"):
        Run(units=1, seconds=1).percentile(50)


def test_ratios_are_of_runs_that_followed_each_other() -> None:
    assert paired_ratio([10, 20, 30], [10, 10, 5]) == Spread(2, 1, 6)


def test_a_run_without_its_pair_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1, 2], [1])


async def test_contestants_take_turns_and_the_first_round_warms_up() -> None:
    turns: list[str] = []

    def contestant(name: str) -> Run:
        turns.append(name)
        return Run(units=len(turns), seconds=1)

    async def a() -> Run:
        return contestant("a")

    async def b() -> Run:
        return contestant("b")

    said: list[str] = []
    runs = await alternate({"a": a, "b": b}, 2, progress=said.append)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert {name: [run.units for run in of] for name, of in runs.items()} == {
        "a": [4, 5],
        "b": [3, 6],
    }
    assert said[0] == "a: warm-up"
    assert said[-1] == "b: round 2 of 2"
