"""(f) A large backlog: drain rate and memory. (j) The cost of a request at three queue depths."""

from collections.abc import Sequence
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
_FEW: Final = 5  # in flight: half of the smallest depth, for what is in flight is of the queue
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
    async with EmbeddedServer() as server:
        return [
            await _at_depths(lab, server, depths, slots=_FEW),
            await _at_depths(lab, server, depths[1:], slots=SLOTS),
        ]


async def _at_depths(
    lab: Lab, server: EmbeddedServer, depths: Sequence[int], *, slots: int
) -> Figures:
    measured = _MEASURED_FULL if lab.full else _MEASURED
    contestants = {
        f"depth {depth:,}": partial(_at_depth, server, depth, measured, slots) for depth in depths
    }
    runs = await alternate(contestants, lab.rounds, progress=lab.progress)
    shallow, *_, deepest = runs
    goal = Goal(ours=deepest, peer=shallow, metric=Metric.RATE, at_least=_DEPTH_GOAL)
    notes = [
        (
            "The queue stays at its depth: for each request that is settled the worker's process"
            f" publishes a new one. {measured:,} requests after the first {_WARM:,}."
        ),
    ]
    title = f"one worker process, {slots} in flight at every depth"
    return Figures(title=title, unit="requests", runs=runs, goals=[goal], notes=notes)


async def _at_depth(server: EmbeddedServer, depth: int, measured: int, slots: int) -> Run:
    until = _WARM + measured
    load = Load(depth=depth, legs=[_WARM, until], slots=slots, refill=until)
    warm, whole = await drain(server, dialback(), load)
    return between(warm, whole)


SCENARIOS: Final = [
    Scenario(letter="f", title="a large backlog: drain rate and memory", measure=_drain_large),
    Scenario(letter="j", title="cost curve: requests at three queue depths", measure=_cost_curve),
]
