"""A number of worker processes that is kept while they are killed, frozen and drained."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from dialback.queue.topology import Endpoint
from support.worker_process import WorkerProcess, worker_process


@dataclass(slots=True)
class _Member:
    worker: WorkerProcess
    running: AbstractAsyncContextManager[WorkerProcess]


@dataclass(slots=True)
class Fleet:
    """Workers of one endpoint.

    Attributes:
        kills: Workers killed with SIGKILL.
        zombies: Workers stopped with SIGSTOP for longer than a lease, and continued.
        drained: Workers drained with SIGTERM, each with its exit code.
    """

    engine: str
    endpoint: Endpoint
    server: str
    settings: dict[str, object]
    random: random.Random
    kills: int = 0
    zombies: int = 0
    drained: list[int] = field(default_factory=list[int])
    _members: list[_Member] = field(default_factory=list[_Member])
    _starting: set[asyncio.Task[WorkerProcess]] = field(
        default_factory=set[asyncio.Task[WorkerProcess]]
    )

    @property
    def workers(self) -> list[WorkerProcess]:
        """Those that run."""
        return [member.worker for member in self._members]

    async def add(self) -> WorkerProcess:
        """Start one more worker, and wait until it works."""
        running = worker_process(self.engine, self.endpoint, self.server, **self.settings)
        worker = await running.__aenter__()
        try:
            await worker.started()
        except BaseException:
            await running.__aexit__(None, None, None)
            raise
        self._members.append(_Member(worker, running))
        return worker

    async def kill_one(self) -> None:
        """SIGKILL a worker that works, and start another; do not wait for it."""
        if not self._members:
            return
        member = self._take()
        self.kills += 1
        await member.running.__aexit__(None, None, None)
        self._starting.add(asyncio.create_task(self.add(), name="start-worker"))

    async def drain_one(self) -> None:
        """Start another worker, then SIGTERM the oldest and wait for its end."""
        await self.add()
        member = self._members.pop(0)
        member.worker.terminate()
        self.drained.append(await member.worker.exit_code())
        await member.running.__aexit__(None, None, None)

    async def freeze_one(self, seconds: float) -> None:
        """SIGSTOP a worker for so long, then let it go on."""
        member = self._take()
        member.worker.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        member.worker.process.send_signal(signal.SIGCONT)
        self.zombies += 1
        self._members.append(member)

    def _take(self) -> _Member:
        return self._members.pop(self.random.randrange(len(self._members)))

    async def close(self) -> None:
        """SIGKILL all."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for member in self._members:
            await member.running.__aexit__(None, None, None)


@asynccontextmanager
async def fleet(
    count: int, engine: str, endpoint: Endpoint, server: str, **settings: object
) -> AsyncGenerator[Fleet]:
    """Run so many workers; they are killed at the end."""
    workers = Fleet(engine, endpoint, server, settings, random.Random(time.time_ns()))  # noqa: S311
    try:
        await asyncio.gather(*(workers.add() for _ in range(count)))
        yield workers
    finally:
        await workers.close()
