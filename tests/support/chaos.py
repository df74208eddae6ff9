"""Worker processes and a broker, hurt on purpose: one seed decides what, when and whom."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.worker_process import WorkerProcess, worker_process

ENGINE = "tests.support.ledger_engine:generate"


@dataclass(frozen=True, slots=True)
class Action:
    """What was done, and when.

    Attributes:
        at: Seconds since the beginning.
        what: Which fault.
        whom: Process id of the victim.
    """

    at: float
    what: str
    whom: int

    @override
    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.what} {self.whom}"


class Chaos:
    """Keeps ``size`` worker processes alive, and kills them.

    Attributes:
        alive: The processes that are to work.
        gone: Those that were killed or have ended.
        killed: Process ids of those that got a SIGKILL.
        actions: What was done.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        server: EmbeddedServer,
        *,
        size: int,
        seed: int,
        engine: str = ENGINE,
        **settings: object,
    ) -> None:
        self.alive: list[WorkerProcess] = []
        self.gone: list[WorkerProcess] = []
        self.killed: set[int] = set()
        self.actions: list[Action] = []
        self.random = random.Random(seed)  # noqa: S311 -- repeatable
        self._endpoint, self._server, self._size = endpoint, server, size
        self._engine, self._settings = engine, settings
        self._stack = AsyncExitStack()
        self._begun = time.monotonic()

    @property
    def all(self) -> list[WorkerProcess]:
        """Every process that ever worked."""
        return self.gone + self.alive

    async def start_one(self, engine: str | None = None) -> WorkerProcess:
        """Start one more process, with another engine if need be; it need not work yet."""
        worker = await self._stack.enter_async_context(
            worker_process(
                engine or self._engine, self._endpoint, self._server.url, **self._settings
            )
        )
        self.alive.append(worker)
        return worker

    async def __aenter__(self) -> "Chaos":
        try:
            for _ in range(self._size):
                await self.start_one()
            for worker in self.alive:
                await self.works(worker)
        except BaseException:
            await self._stack.aclose()
            raise
        self._begun = time.monotonic()
        return self

    async def works(self, worker: WorkerProcess) -> None:
        """Wait until a process works; fail with its log if it ends instead."""
        started = asyncio.ensure_future(worker.started())
        ended = asyncio.ensure_future(worker.process.wait())
        await asyncio.wait((started, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not started.done():
            started.cancel()
            raise AssertionError(f"worker ended with {worker.process.returncode}: {worker.log}")
        await started

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)

    def _note(self, what: str, whom: int) -> None:
        self.actions.append(Action(time.monotonic() - self._begun, what, whom))

    def any_worker(self) -> WorkerProcess:
        """One of the processes that work."""
        return self.random.choice(self.alive)

    def bury(self, worker: WorkerProcess) -> None:
        """Count a process among those that are gone."""
        self.alive.remove(worker)
        self.gone.append(worker)

    async def kill_worker(self) -> None:
        """SIGKILL a worker and replace it."""
        worker = self.any_worker()
        self._note("SIGKILL worker", worker.process.pid)
        self.killed.add(worker.process.pid)
        self.bury(worker)
        await worker.kill()
        await self.start_one()

    async def freeze_worker(self, seconds: float) -> None:
        """SIGSTOP a worker, and SIGCONT it after so many seconds."""
        worker = self.any_worker()
        self._note(f"SIGSTOP for {seconds:g} s worker", worker.process.pid)
        worker.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            if worker.process.returncode is None:
                worker.process.send_signal(signal.SIGCONT)

    async def roll_worker(self) -> int:
        """SIGTERM a worker, replace it, and return its exit code."""
        worker = self.any_worker()
        self.bury(worker)
        await worker.started()  # before that, nobody listens to the signal
        self._note("SIGTERM worker", worker.process.pid)
        worker.terminate()
        await self.start_one()
        return await worker.exit_code()

    @asynccontextmanager
    async def replacing(self) -> AsyncGenerator[None]:
        """Replace every process that ends of itself while the block runs."""

        async def watch(worker: WorkerProcess) -> None:
            await worker.process.wait()
            self._note("death of worker", worker.process.pid)
            self.killed.add(worker.process.pid)
            self.bury(worker)
            tasks.add(asyncio.create_task(watch(await self.start_one())))

        tasks = {asyncio.create_task(watch(worker)) for worker in self.alive}
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def restart_broker(self, down: float = 0.0) -> None:
        """SIGKILL the broker; start it on the same port and store after ``down`` seconds."""
        self._note("SIGKILL and restart broker", self._server.pid)
        await self._server.kill()
        await asyncio.sleep(down)
        await self._server.start()

    async def drain(self) -> list[int]:
        """SIGTERM every process that works; return their exit codes."""
        workers = list(self.alive)
        for worker in workers:
            await worker.started()  # a signal before that is another test's business
            worker.terminate()
            self.bury(worker)
        return [await worker.exit_code() for worker in workers]

    def events(self, message: str) -> list[dict[str, Any]]:
        """The log events of all processes with this message, with the process id in them."""
        return [
            event | {"worker_pid": worker.process.pid}
            for worker in self.all
            for event in worker.log
            if event["message"] == message
        ]


@asynccontextmanager
async def every(seconds: float, action: Callable[[], Awaitable[object]]) -> AsyncGenerator[None]:
    """Do something every so many seconds while the block runs; what has begun is finished."""
    ended = asyncio.Event()

    async def again_and_again() -> None:
        while not await _within(ended, seconds):
            await action()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(again_and_again())
        try:
            yield
        finally:
            ended.set()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
