import pytest

from benchmarks.collect import chosen, measure
from benchmarks.report import Result
from benchmarks.scenario import Figures, Lab, Scenario
from support.bench_figures import figures


async def _works(lab: Lab) -> list[Figures]:
    return [figures()]


async def _fails(lab: Lab) -> list[Figures]:
    raise RuntimeError("the peer left")


KNOWN = [
    Scenario(letter="a", title="first", measure=_works),
    Scenario(letter="b", title="second", measure=_fails),
    Scenario(letter="c", title="third", measure=_works),
]


@pytest.mark.parametrize(("letters", "picked"), [("", "abc"), ("ca", "ac"), ("b", "b")])
def test_scenarios_are_chosen_by_letter_and_run_in_order(letters: str, picked: str) -> None:
    assert [scenario.letter for scenario in chosen(KNOWN, letters)] == list(picked)


def test_a_letter_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="no scenario x, z; there are abc"):
        chosen(KNOWN, "zax")


async def test_a_scenario_that_fails_does_not_keep_the_others_from_running() -> None:
    said: list[str] = []
    results = list[Result]()
    failed = await measure(KNOWN, Lab(progress=said.append), done=results.append)
    assert failed == ["b"]
    assert [result.letter for result in results] == ["a", "c"]
    assert said == ["a: first", "b: second", "b failed: RuntimeError: the peer left", "c: third"]
