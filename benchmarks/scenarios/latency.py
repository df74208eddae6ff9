"""Scenario (e): a slow engine, many streams: what each item's way adds to it."""

from typing import Final

from benchmarks.scenario import Figures, Goal, Lab, Metric, Scenario
from benchmarks.scenarios.contestants import (
    DIALBACK,
    DYNAMO_NATS,
    RAW_UVLOOP,
    openings,
    started,
    take_turns,
)
from benchmarks.systems.system import Latency, Load

_STREAMS: Final = (100, 500)  # at the same time
_GOAL_AT: Final = 500
_PAUSE: Final = 0.02  # seconds before each item
_SETTLED: Final = 100  # items of each stream that are not timed: others are still starting
_NOTE: Final = (
    "Added latency: from the moment the engine yields an item to the caller's loop, of the items"
    f" from number {_SETTLED} on, when all streams run: how fast requests start is scenario (a)."
    " With 500 streams a system that cannot move 25,000 items per second makes them wait for each"
    " other; with 100 it needs 5,000."
)


def load(streams: int, *, full: bool) -> Load:
    """Return the load: the same for all, since the engine sets the pace."""
    return Load(
        requests=streams,
        in_flight=streams,
        items=_SETTLED + (200 if full else 50),
        pause=_PAUSE,
        latency=Latency.ADDED,
        timed_from=_SETTLED,
    )


async def _measure(lab: Lab) -> list[Figures]:
    goal = Goal(ours=DIALBACK, peer=RAW_UVLOOP, metric=Metric.P99, at_most=2.0)
    figures: list[Figures] = []
    async with started(openings(max(_STREAMS), (DYNAMO_NATS, RAW_UVLOOP))) as systems:
        for streams in _STREAMS:
            title = f"{streams} streams, an item every 20 ms"
            loads = dict.fromkeys(systems, load(streams, full=lab.full))
            runs = await take_turns(lab, systems, loads, title=title)
            figures.append(
                Figures(
                    title=title,
                    unit="items",
                    latency=Latency.ADDED.value,
                    runs=runs,
                    goals=[goal] if streams == _GOAL_AT else [],
                    notes=[_NOTE],
                )
            )
    return figures


SCENARIOS: Final = [
    Scenario(letter="e", title="latency that is added to a slow engine", measure=_measure),
]
