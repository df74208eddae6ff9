"""Figures of a benchmark that never ran."""

from collections.abc import Sequence

from benchmarks.machine import Machine
from benchmarks.measurement import Run
from benchmarks.report import Conditions, Entry, Measured, Result
from benchmarks.scenario import Figures, Goal, Metric

MACHINE = Machine(
    cpu="A Processor", cores=2, memory=8 * 2**30, system="Linux 6.1", versions={"Python": "3.11.7"}
)
FASTER = Goal(ours="dialback", peer="Dynamo", metric=Metric.RATE, at_least=4)
QUICKER = Goal(ours="dialback", peer="Dynamo", metric=Metric.P50, at_most=1.25)


def conditions(*, machine: Machine = MACHINE, full: bool = True) -> Conditions:
    return Conditions(
        machine=machine,
        date="2026-03-04T05:06:07+00:00",
        commit="0123abcd",
        full=full,
        rounds=3,
    )


def runs(*rates: int, latency: float = 0.0, cpu: float = 0.0) -> list[Run]:
    """One run for each rate; of one second."""
    return [
        Run(
            units=rate,
            seconds=1,
            latencies=[latency] if latency else (),
            cpu={"worker": cpu * rate} if cpu else {},
        )
        for rate in rates
    ]


def figures(*, goals: Sequence[Goal] = (FASTER,)) -> Figures:
    """dialback is 5 times as fast, and has 1.2 times the latency."""
    return Figures(
        title="one stream",
        unit="items",
        latency="seconds to the first item",
        runs={
            "dialback": runs(900, 1000, 1200, latency=0.0012, cpu=0.00001),
            "Dynamo": runs(200, 200, 200, latency=0.001),
            "raw": runs(2000, 2000, 2000),
        },
        goals=goals,
        notes=["A note."],
    )


def entry(*of: Figures, letter: str = "b") -> Entry:
    result = Result(letter=letter, title="streams", figures=list(of))
    return Entry(conditions=conditions(), result=result)


def measured(*letters: str, machine: Machine = MACHINE, full: bool = True) -> Measured:
    return Measured(
        conditions=conditions(machine=machine, full=full),
        results=[entry(figures(), letter=letter).result for letter in letters],
    )
