"""How much a hot path may cost beside the raw loop, and who is over it. No I/O.

Bounds are about 1.6 times what was measured when they were set (3 times for CPU time, which is
noisy), so they find what got much slower, not a few percent. A path that became faster for
good deserves a lower bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Unit(Enum):
    """What is counted."""

    INSTRUCTIONS = "instructions"
    CPU_TIME = "ns of CPU time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The largest ratio of one operation of a path to one turn of the raw loop.

    Attributes:
        instructions: When instructions are counted.
        cpu_time: When CPU time is measured.
        code: Where to look when it is exceeded.
    """

    instructions: float
    cpu_time: float
    code: str


BOUNDS: Final = {
    "encode": Bound(instructions=1.0, cpu_time=1.9, code="transport/items.py, two_part.py"),
    "decode": Bound(
        instructions=1.65,
        cpu_time=3.0,
        code="transport/two_part.py, incoming.py, receiver.py, backlog.py",
    ),
    "pump": Bound(
        instructions=1.25,
        cpu_time=2.4,
        code="ingress/response.py, transport/sender.py, connection.py",
    ),
    "settle": Bound(
        instructions=6.0,
        cpu_time=16.0,
        code="queue/delivery.py, replies.py, src/dialback/retries.py",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was measured of one path.

    Attributes:
        path: Its name.
        cost: Of one operation, in the unit that was counted.
        ratio: To one turn of the raw loop.
        bound: The largest ratio allowed.
        code: Where to look.
    """

    path: str
    cost: float
    ratio: float
    bound: float
    code: str

    @property
    def kept(self) -> bool:
        """Whether the ratio is within its bound."""
        return self.ratio <= self.bound


def judge(costs: Mapping[str, float], raw: float, unit: Unit) -> list[Verdict]:
    """Compare what one operation of each path costs with the raw loop.

    Raises:
        KeyError: If a path has no bound.
        ValueError: If a cost is not positive: then nothing was measured.
    """
    for name, cost in {**costs, "raw loop": raw}.items():
        if cost <= 0:
            raise ValueError(f"{name} costs {cost:g} {unit.value}: nothing was measured")
    return [
        Verdict(
            path=name,
            cost=cost,
            ratio=cost / raw,
            bound=_bound(BOUNDS[name], unit),
            code=BOUNDS[name].code,
        )
        for name, cost in costs.items()
    ]


def _bound(bound: Bound, unit: Unit) -> float:
    return bound.instructions if unit is Unit.INSTRUCTIONS else bound.cpu_time


def report(verdicts: Sequence[Verdict], raw: float, unit: Unit) -> list[str]:
    """Return the lines to print: a table, and for each path over its bound what to do."""
    lines = [
        f"{unit.value} for one operation; ratio to the raw loop of the same run",
        f"  {'raw loop':<9}{raw:12,.0f}",
    ]
    lines += [
        f"  {verdict.path:<9}{verdict.cost:12,.0f}   {verdict.ratio:6.2f} of at most"
        f" {verdict.bound:g}{'' if verdict.kept else '   TOO SLOW'}"
        for verdict in verdicts
    ]
    for verdict in verdicts:
        if not verdict.kept:
            times = verdict.ratio / verdict.bound
            lines.append(
                f"{verdict.path} costs {times:.1f} times what it may. Look at what changed in"
                f" {verdict.code}. If it is worth its price, raise the bound in"
                " benchmarks/guard/bounds.py and say why in the commit."
            )
    return lines
