"""(f) A large backlog: drain rate and memory. (j) The cost of a request at three queue depths."""

from dataclasses import replace
from functools import partial
from typing import Final

from benchmarks.measurement import Run, alternate
from benchmarks.queue_half.rig import SLOTS, Load, between, drain
from benchmarks.queue_half.systems import dialback
from benchmarks.scenario import Figures, Goal, Lab, Metric, Scenario
from dialback.queue.embedded_server import EmbeddedServer

_BACKLOG: Final = 20_000
_BACKLOG_FULL: Final = 100_000
_EARLY, _LATE = "after 10 %", "at the end"
_MEMORY_GOAL: Final = 1.2

_DEPTHS: Final = (10, 1_000, 10_000)
_DEPTHS_FULL: Final = (10, 1_000, 100_000)
_FEW: Final = 16  # slots of a worker, unless it is told otherwise
_WORK: Final = 0.02  # seconds
_FEWEST: Final = 5
_WARM: Final = 300  # requests before those that are measured
_MEASURED: Final = 1_000
_MEASURED_FULL: Final = 3_000
_DEPTH_GOAL: Final = 0.8


async def _drain_large(lab: Lab) -> list[Figures]:
    count = _BACKLOG_FULL if lab.full else _BACKLOG
    load = Load(depth=count, legs=[count // 10, count])
    runs: dict[str, list[Run]] = {_EARLY: [], _LATE: []}
    async with EmbeddedServer() as server:
        for number in range(lab.rounds if lab.full else 1):
            lab.progress(f"backlog of {count:,}: round {number + 1}")
            early, late = await drain(server, dialback(), load)
            runs[_EARLY].append(early)
            runs[_LATE].append(late)
    goal = Goal(ours=_LATE, peer=_EARLY, metric=Metric.WORKER_MEMORY, at_most=_MEMORY_GOAL)
    notes = [
        (
            "Both lines are of the same runs: what was drained until then, and the worker's"
            " resident memory at that moment. The back-channel is replaced: no client limits the"
            " rate."
        ),
    ]
    title = f"a backlog of {count:,} requests, one worker process, {SLOTS} in flight"
    return [Figures(title=title, unit="requests", runs=runs, goals=[goal], notes=notes)]


async def _cost_curve(lab: Lab) -> list[Figures]:
    depths = _DEPTHS_FULL if lab.full else _DEPTHS
    goal = Goal(
        ours=_depth(depths[-1]), peer=_depth(depths[0]), metric=Metric.RATE, at_least=_DEPTH_GOAL
    )
    async with EmbeddedServer() as server:

        async def at_depths(load: Load, title: str, goals: list[Goal], *notes: str) -> Figures:
            contestants = {
                _depth(depth): partial(_at_depth, server, depth, load) for depth in depths
            }
            runs = await alternate(contestants, lab.rounds, progress=lab.progress)
            notes = (_STAYS, *notes)
            return Figures(title=title, unit="requests", runs=runs, goals=goals, notes=list(notes))

        measured = _WARM + (_MEASURED_FULL if lab.full else _MEASURED)
        load = Load(depth=0, legs=[_WARM, measured], refill=measured)
        return [
            await at_depths(
                replace(load, slots=_FEW, work=_WORK),
                f"one worker process, {_FEW} in flight, an engine that takes up to {_WORK:g} s",
                [goal],
            ),
            await at_depths(
                load, f"one worker process, {SLOTS} in flight, an engine that takes no time", [goal]
            ),
            await at_depths(
                replace(load, slots=_FEWEST),
                f"one worker process, {_FEWEST} in flight, an engine that takes no time",
                [],
                _SEARCHED,
            ),
        ]


def _depth(depth: int) -> str:
    return f"depth {depth:,}"


async def _at_depth(server: EmbeddedServer, depth: int, load: Load) -> Run:
    deep = replace(load, depth=depth + load.slots)
    warm, whole = await drain(server, dialback(), deep)
    return between(warm, whole)


_STAYS: Final = (
    "The depth is what waits behind the requests in flight, and it stays: for each request that is"
    f" settled the worker's process publishes a new one. The first {_WARM:,} are not measured."
)
_SEARCHED: Final = (
    "No goal: this is the server's cost. Each request has a subject of its own, and nats-server"
    " 2.15 looks at all of a lane's subjects for a delivery that starts at the first message that"
    " it stores. That is so when all earlier ones are settled: with one request in flight in all,"
    " or when those in flight end at the same moment, as here. One that is still in flight from"
    " before prevents it."
)

SCENARIOS: Final = [
    Scenario(letter="f", title="a large backlog: drain rate and memory", measure=_drain_large),
    Scenario(letter="j", title="cost curve: requests at three queue depths", measure=_cost_curve),
]
