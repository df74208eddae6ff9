"""The contestants of the end-to-end scenarios: started together, they take turns."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

from benchmarks.measurement import Contestant, Run, alternate
from benchmarks.scenario import Lab
from benchmarks.systems.dynamo import dynamo
from benchmarks.systems.ours import dialback
from benchmarks.systems.raw import raw
from benchmarks.systems.system import Load, Opening, System

DIALBACK: Final = "dialback"
DYNAMO_NATS: Final = "dynamo-nats"
DYNAMO_TCP: Final = "dynamo-tcp"
RAW_ASYNCIO: Final = "raw-asyncio"
RAW_UVLOOP: Final = "raw-uvloop"
RAW_JSON: Final = "raw-json"

PEERS: Final[Mapping[str, Callable[[], Opening]]] = {
    DYNAMO_NATS: partial(dynamo, "nats"),
    DYNAMO_TCP: partial(dynamo, "tcp"),
    RAW_ASYNCIO: partial(raw, "asyncio"),
    RAW_UVLOOP: partial(raw, "uvloop"),
    RAW_JSON: partial(raw, "uvloop", "json"),
}
"""How each peer is started."""

Systems: TypeAlias = Mapping[str, System]


def openings(slots: int, peers: Sequence[str]) -> dict[str, Opening]:
    """Return dialback, with so many slots, and these peers: not started yet."""
    return {DIALBACK: dialback(slots=slots), **{name: PEERS[name]() for name in peers}}


@asynccontextmanager
async def started(opened: Mapping[str, Opening]) -> AsyncGenerator[Systems]:
    """Start systems one after the other; stop them all at the end."""
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(one) for name, one in opened.items()}


async def take_turns(
    lab: Lab, systems: Systems, loads: Mapping[str, Load], *, title: str
) -> dict[str, list[Run]]:
    """Let systems run their loads in alternation.

    Args:
        lab: How often.
        systems: Started ones.
        loads: What each of them runs, by the same names.
        title: Of the load, for those who wait.
    """
    contestants: dict[str, Contestant] = {
        name: partial(system.run, loads[name]) for name, system in systems.items()
    }
    return await alternate(
        contestants, lab.rounds, progress=lambda line: lab.progress(f"{title}: {line}")
    )
