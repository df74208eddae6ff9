"""Scenario (a): requests of one item, through a queue that is durable and one that is not."""

from typing import Final

from benchmarks.measurement import Run
from benchmarks.scenario import Figures, Goal, Lab, Metric, Scenario
from benchmarks.scenarios.contestants import (
    DIALBACK,
    DYNAMO_NATS,
    DYNAMO_TCP,
    openings,
    started,
    take_turns,
)
from benchmarks.systems.system import Latency, Load

_IN_FLIGHT: Final = (1, 16, 64, 256)
_GOALS: Final = {
    1: Goal(ours=DIALBACK, peer=DYNAMO_NATS, metric=Metric.P50, at_most=1.3),
    64: Goal(ours=DIALBACK, peer=DYNAMO_NATS, metric=Metric.RATE, at_least=1.0),
}
_NOTE: Final = (
    "dialback's requests are stored by JetStream and acknowledged one by one; Dynamo's are not"
    " stored. A Dynamo worker takes any number of requests, so dialback's has 256 slots."
)


def load(in_flight: int, *, full: bool) -> Load:
    """Return a load of more than a second for any contestant."""
    requests = 400 if in_flight == 1 else 2_000
    return Load(requests=requests * (4 if full else 1), in_flight=in_flight)


async def _measure(lab: Lab) -> list[Figures]:
    figures: list[Figures] = []
    async with started(openings(max(_IN_FLIGHT), (DYNAMO_NATS, DYNAMO_TCP))) as systems:
        for in_flight in _IN_FLIGHT:
            title = f"{in_flight} in flight"
            loads = dict.fromkeys(systems, load(in_flight, full=lab.full))
            runs = await take_turns(lab, systems, loads, title=title)
            figures.append(_figures(in_flight, title, runs))
    return figures


def _figures(in_flight: int, title: str, runs: dict[str, list[Run]]) -> Figures:
    return Figures(
        title=title,
        unit="requests",
        latency=Latency.FIRST.value,
        runs=runs,
        goals=[_GOALS[in_flight]] if in_flight in _GOALS else [],
        notes=[_NOTE],
    )


SCENARIOS: Final = [
    Scenario(letter="a", title="requests of one item each", measure=_measure),
]
