import pytest

from benchmarks.scenarios import latency, requests, scaling
from benchmarks.scenarios.contestants import DIALBACK, PEERS
from benchmarks.scenarios.streams import LARGE, MANY, ONE, SCENARIOS, Shape
from benchmarks.systems.system import Latency, Load


def test_a_load_becomes_the_command_for_a_client() -> None:
    load = Load(
        requests=2, in_flight=1, repeat=3, items=4, size=5, latency=Latency.ADDED, timed_from=6
    )
    assert load.command() == {
        "requests": 2,
        "in_flight": 1,
        "repeat": 3,
        "timed_from": 6,
        "request": {"n": 4, "size": 5, "pause": 0.0, "turn": False},
    }


@pytest.mark.parametrize("shape", [*ONE, *MANY, *LARGE], ids=lambda shape: shape.title)
def test_streams_are_requested_together_by_each_contestant(shape: Shape) -> None:
    for name in (DIALBACK, *PEERS):
        load = shape.load(name, full=False)
        assert load.requests == load.in_flight == shape.streams
        assert shape.load(name, full=True).repeat > load.repeat


def test_full_loads_are_larger() -> None:
    assert requests.load(64, full=True).requests > requests.load(64, full=False).requests
    assert latency.load(500, full=True).items > latency.load(500, full=False).items
    assert scaling.streams(full=True).repeat > scaling.streams(full=False).repeat
    assert scaling.requests(full=True).requests > scaling.requests(full=False).requests


def test_every_scenario_has_its_letter() -> None:
    modules = (requests, latency, scaling)
    letters = [scenario.letter for module in modules for scenario in module.SCENARIOS]
    assert [*letters, *(scenario.letter for scenario in SCENARIOS)] == ["a", "e", "g", *"bcd"]
