"""(h) What leases, events and metrics cost: the queue half without one of them at a time."""

from typing import Final

from benchmarks.measurement import alternate
from benchmarks.queue_half.rig import SLOTS, draining
from benchmarks.queue_half.systems import dialback
from benchmarks.scenario import Figures, Lab, Scenario
from dialback.queue.embedded_server import EmbeddedServer

_JOBS: Final = 2_000
_JOBS_FULL: Final = 20_000
_PARTS: Final = ("leases", "events", "metrics")


async def _measure(lab: Lab) -> list[Figures]:
    count = _JOBS_FULL if lab.full else _JOBS
    systems = {"everything on": dialback()}
    systems |= {f"without {part}": dialback([part]) for part in _PARTS}
    async with EmbeddedServer() as server:
        contestants = {name: draining(server, one, count) for name, one in systems.items()}
        runs = await alternate(contestants, lab.rounds, progress=lab.progress)
    notes = [
        (
            "In the place of leases and metrics are stand-ins of the benchmark that do nothing; the"
            " product has no such switch. Events are the log line of each request: without them the"
            " log level is WARNING."
        ),
    ]
    title = f"the queue half, a backlog of {count:,} requests, {SLOTS} in flight"
    return [Figures(title=title, unit="requests", runs=runs, notes=notes)]


SCENARIOS: Final = [
    Scenario(
        letter="h",
        title="cost of leases, events and metrics, switched off one at a time",
        measure=_measure,
    )
]
