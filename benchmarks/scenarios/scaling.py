"""Scenario (g): one, two and four worker processes of dialback, one client."""

import os
from typing import Final

from benchmarks.scenario import Figures, Lab, Scenario
from benchmarks.scenarios.contestants import started, take_turns
from benchmarks.systems.ours import dialback
from benchmarks.systems.system import Latency, Load

_PROCESSES: Final = (1, 2, 4)
_SLOTS: Final = 64  # of each process
_FULL: Final = 4  # times as many


def requests(*, full: bool) -> Load:
    """Return requests of one item, 64 in flight."""
    return Load(requests=2_000 * (_FULL if full else 1), in_flight=64)


def streams(*, full: bool) -> Load:
    """Return 32 streams of 500 items, several times."""
    return Load(requests=32, in_flight=32, items=500, repeat=5 * (_FULL if full else 1))


def _note() -> str:
    return (
        f"One client and one nats-server share {os.cpu_count()} cores with the workers: more"
        " processes than there are cores for cannot be faster."
    )


async def _measure(lab: Lab) -> list[Figures]:
    opened = {_name(number): dialback(slots=_SLOTS, processes=number) for number in _PROCESSES}
    loads = {
        "64 requests of one item in flight": ("requests", requests(full=lab.full)),
        "32 streams of 500 items": ("items", streams(full=lab.full)),
    }
    figures: list[Figures] = []
    async with started(opened) as systems:
        for title, (unit, load) in loads.items():
            runs = await take_turns(lab, systems, dict.fromkeys(systems, load), title=title)
            latency = Latency.FIRST.value
            figures.append(
                Figures(title=title, unit=unit, latency=latency, runs=runs, notes=[_note()])
            )
    return figures


def _name(processes: int) -> str:
    return f"{processes} process" + ("es" if processes > 1 else "")


SCENARIOS: Final = [
    Scenario(letter="g", title="more worker processes", measure=_measure),
]
