"""Scenarios (b), (c) and (d): one long stream, many at the same time, and large items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks.scenario import Figures, Goal, Lab, Metric, Scenario
from benchmarks.scenarios.contestants import (
    DIALBACK,
    DYNAMO_NATS,
    DYNAMO_TCP,
    RAW_ASYNCIO,
    RAW_JSON,
    RAW_UVLOOP,
    openings,
    started,
    take_turns,
)
from benchmarks.systems.system import Latency, Load

_PEERS: Final = (DYNAMO_NATS, DYNAMO_TCP, RAW_ASYNCIO, RAW_UVLOOP, RAW_JSON)
_GOALS: Final = (
    Goal(ours=DIALBACK, peer=DYNAMO_NATS, metric=Metric.RATE, at_least=4.0),
    Goal(ours=DIALBACK, peer=RAW_UVLOOP, metric=Metric.RATE, at_least=0.5),
)
_FULL: Final = 3  # times as many repetitions
_TIGHT: Final = {
    DIALBACK: 10,
    DYNAMO_NATS: 2,
    DYNAMO_TCP: 2,
    RAW_ASYNCIO: 40,
    RAW_UVLOOP: 50,
    RAW_JSON: 20,
}
_TURNING: Final = {
    DIALBACK: 5,
    DYNAMO_NATS: 2,
    DYNAMO_TCP: 2,
    RAW_ASYNCIO: 4,
    RAW_UVLOOP: 6,
    RAW_JSON: 4,
}
_RAW_NOTE: Final = (
    "The raw loop-backs write frames that were encoded before, of the size of dialback's, and"
    " count them: no JSON, no queue, one write for each turn of the loop. raw-json runs the"
    " scenarios' engine instead, writes its items by orjson and reads them by it."
)
_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is measured under one title.

    Attributes:
        title: Half a sentence.
        streams: Streams at the same time.
        items: Items of each of them.
        size: Characters of text in each item.
        turn: Whether the engine lets the loop turn before each item.
        repeat: Repetitions of each contestant, so that a run takes about a second.
        goals: What is to hold.
        notes: Sentences that a reader needs.
    """

    title: str
    streams: int
    items: int
    size: int = 0
    turn: bool = False
    repeat: Mapping[str, int]
    goals: Sequence[Goal] = _GOALS
    notes: Sequence[str] = (_RAW_NOTE,)

    def load(self, name: str, *, full: bool) -> Load:
        """Return what a contestant runs."""
        return Load(
            requests=self.streams,
            in_flight=self.streams,
            repeat=self.repeat[name] * (_FULL if full else 1),
            items=self.items,
            size=self.size,
            turn=self.turn,
        )


ONE: Final = (
    Shape(
        title="one stream of 10,000 items, an engine that never waits",
        streams=1,
        items=10_000,
        repeat=_TIGHT,
    ),
    Shape(
        title="one stream of 10,000 items, the event loop turns before each",
        streams=1,
        items=10_000,
        turn=True,
        repeat=_TURNING,
    ),
)
MANY: Final = (
    Shape(
        title="32 streams of 500 items, an engine that never waits",
        streams=32,
        items=500,
        repeat={
            DIALBACK: 5,
            DYNAMO_NATS: 1,
            DYNAMO_TCP: 1,
            RAW_ASYNCIO: 20,
            RAW_UVLOOP: 20,
            RAW_JSON: 10,
        },
    ),
    Shape(
        title="32 streams of 500 items, the event loop turns before each",
        streams=32,
        items=500,
        turn=True,
        repeat={
            DIALBACK: 3,
            DYNAMO_NATS: 1,
            DYNAMO_TCP: 1,
            RAW_ASYNCIO: 3,
            RAW_UVLOOP: 5,
            RAW_JSON: 3,
        },
    ),
    Shape(
        title="256 streams of 500 items, an engine that never waits",
        streams=256,
        items=500,
        repeat={
            DIALBACK: 1,
            DYNAMO_NATS: 1,
            DYNAMO_TCP: 1,
            RAW_ASYNCIO: 3,
            RAW_UVLOOP: 3,
            RAW_JSON: 2,
        },
    ),
    Shape(
        title="256 streams of 500 items, the event loop turns before each",
        streams=256,
        items=500,
        turn=True,
        repeat={
            DIALBACK: 1,
            DYNAMO_NATS: 1,
            DYNAMO_TCP: 1,
            RAW_ASYNCIO: 1,
            RAW_UVLOOP: 1,
            RAW_JSON: 1,
        },
    ),
)
LARGE: Final = (
    Shape(
        title="one stream of 50 items of 1 MB",
        streams=1,
        items=50,
        size=_MEGABYTE,
        repeat={
            DIALBACK: 4,
            DYNAMO_NATS: 2,
            DYNAMO_TCP: 2,
            RAW_ASYNCIO: 10,
            RAW_UVLOOP: 10,
            RAW_JSON: 4,
        },
        goals=(),
        notes=(_RAW_NOTE, "Items per second are megabytes per second."),
    ),
)


async def measure(shapes: Sequence[Shape], lab: Lab) -> list[Figures]:
    """Measure these shapes one after the other."""
    figures: list[Figures] = []
    slots = max(shape.streams for shape in shapes)
    async with started(openings(slots, _PEERS)) as systems:
        for shape in shapes:
            loads = {name: shape.load(name, full=lab.full) for name in systems}
            runs = await take_turns(lab, systems, loads, title=shape.title)
            figures.append(
                Figures(
                    title=shape.title,
                    unit="items",
                    latency=Latency.FIRST.value,
                    runs=runs,
                    goals=shape.goals,
                    notes=shape.notes,
                )
            )
    return figures


SCENARIOS: Final = [
    Scenario(letter="b", title="one stream of small items", measure=partial(measure, ONE)),
    Scenario(letter="c", title="many streams at the same time", measure=partial(measure, MANY)),
    Scenario(letter="d", title="items of 1 MB", measure=partial(measure, LARGE)),
]
