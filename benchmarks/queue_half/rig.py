"""The rig: a server, a filled queue, one worker process that drains it, and what that took."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from benchmarks.child import Child, Usage
from benchmarks.measurement import Contestant, Run
from benchmarks.queue_half.backlog import Backlog, Message
from dialback.queue.embedded_server import EmbeddedServer

SLOTS: Final = 100
"""Messages that a worker has in flight at once, unless a load says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Whose worker, and how its messages are made.

    Attributes:
        python: Interpreter that has it.
        module: Its child.
        make: Makes its message, given the subject; ``None`` for dialback's requests.
        without: What is left out: see the child.
    """

    python: str
    module: str
    make: Callable[[str], Message] | None = None
    without: Sequence[str] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is drained, and how.

    Attributes:
        depth: Messages in the queue when the clock starts.
        legs: Numbers of settled messages at which a figure is taken; the last ends the run.
        slots: Messages that the worker has in flight at once.
        refill: Requests that are published meanwhile, one for each that is settled.
        work: Seconds the engine takes at most for a request; dialback's only.
    """

    depth: int
    legs: Sequence[int]
    slots: int = SLOTS
    refill: int = 0
    work: float = 0.0


async def drain(server: EmbeddedServer, system: System, load: Load) -> list[Run]:
    """Fill a queue, let one worker process drain it; return a figure for each leg.

    The clock runs from the first pull to the last confirmed acknowledgement of the leg: each
    figure is of everything since the start.

    Raises:
        ChildError: If the worker cannot do it.
    """
    serving = Usage(server.pid)
    async with (
        Backlog(server.url, system.make) as backlog,
        Child(system.python, system.module) as worker,
    ):
        assert worker.usage is not None  # noqa: S101 -- entered
        await worker.ask(
            do="prepare",
            server=server.url,
            stream=backlog.stream,
            subject=backlog.subject,
            slots=load.slots,
            without=list(system.without),
            refill=load.refill,
            work=load.work,
        )
        await backlog.fill(load.depth)
        worker_before, server_before = worker.usage.cpu(), serving.cpu()
        await worker.ask(do="begin")
        runs: list[Run] = []
        for leg in load.legs:
            answer = await worker.ask(do="reach", count=leg)
            run = Run(
                units=leg,
                seconds=answer["seconds"],
                cpu={
                    "worker": worker.usage.cpu() - worker_before,
                    "server": serving.cpu() - server_before,
                },
                memory={"worker": worker.usage.memory(), "server": serving.memory()},
            )
            runs.append(run)
        return runs


async def _whole(server: EmbeddedServer, system: System, count: int) -> Run:
    return (await drain(server, system, Load(depth=count, legs=[count])))[-1]


def draining(server: EmbeddedServer, system: System, count: int) -> Contestant:
    """Return a contestant that drains a queue of so many messages with 100 in flight."""
    return partial(_whole, server, system, count)


def between(earlier: Run, later: Run) -> Run:
    """Return what was done from one leg's end to another's; memory is the later one's."""
    return Run(
        units=later.units - earlier.units,
        seconds=later.seconds - earlier.seconds,
        cpu={role: seconds - earlier.cpu[role] for role, seconds in later.cpu.items()},
        memory=later.memory,
    )
