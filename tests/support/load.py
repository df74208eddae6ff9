"""Callers that judge every answer, and the engine that answers them."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from dialback import Context, Requester, Settings, Worker, WorkerExit
from dialback.errors import DialbackError

ITEMS = 3
LIMIT = 120.0  # seconds for anything a test waits for
COMPLETED = "completed"


@dataclass
class Answers:
    """An engine that yields :data:`ITEMS` items and remembers every run.

    Attributes:
        pause: Seconds of work for each item.
        redelivered: Runs of a second or later delivery.
        runs: Request id to how often it ran.
    """

    pause: float = 0.0
    redelivered: int = 0
    runs: Counter[str] = field(default_factory=Counter[str])
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def started(self, count: int) -> None:
        """Wait until so many runs have begun."""
        async with asyncio.timeout(LIMIT), self._changed:
            await self._changed.wait_for(lambda: self.runs.total() >= count)

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.runs[context.id()] += 1
        self.redelivered += context.delivery > 1
        async with self._changed:
            self._changed.notify_all()
        for i in range(ITEMS):
            await asyncio.sleep(self.pause)
            yield {"request": request["number"], "i": i}


@dataclass
class Load:
    """Requests, each ended once: all its items in order, or one typed error.

    Attributes:
        submitted: Requests begun.
        outcomes: ``completed``, the name of the error's class, or what was wrong.
        published: When each was acknowledged, monotonic seconds.
    """

    requester: Requester
    endpoint: str
    submitted: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    published: list[float] = field(default_factory=list[float])
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ask(self) -> None:
        """Send one request and judge how it ends."""
        self.submitted += 1
        outcome = await self._outcome(self.submitted)
        async with self._changed:
            self.outcomes[outcome] += 1
            self._changed.notify_all()

    async def _outcome(self, number: int) -> str:
        items: list[Any] = []
        try:
            async with self.requester.generate(
                self.endpoint, {"number": number}, timeout=LIMIT, deadline=LIMIT
            ) as stream:
                self.published.append(time.monotonic())
                items = [item async for item in stream]
        except DialbackError as error:
            return type(error).__name__
        whole = [{"request": number, "i": i} for i in range(ITEMS)]
        return COMPLETED if items == whole else f"wrong items: {items}"

    async def ended(self, count: int) -> None:
        """Wait until so many requests have ended in all."""
        async with asyncio.timeout(LIMIT), self._changed:
            await self._changed.wait_for(lambda: self.outcomes.total() >= count)

    async def goes_on(self, more: int = 50) -> None:
        """Wait until so many more have been acknowledged from now on and have ended."""
        await self.ended(self.submitted + more)

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncGenerator[None]:
        """Have callers ask again and again; at the end every request begun is waited for."""
        stopped = asyncio.Event()

        async def caller() -> None:
            while not stopped.is_set():
                await self.ask()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(caller())
            try:
                yield
            finally:
                stopped.set()

    @property
    def longest_gap(self) -> float:
        """Longest time between two acknowledged publishes, seconds."""
        return max(
            (b - a for a, b in zip(self.published, self.published[1:], strict=False)), default=0.0
        )


@asynccontextmanager
async def workers(
    engine: object, endpoint: str, settings: Settings, *, count: int = 1
) -> AsyncGenerator[list[Worker]]:
    """Run workers in this process; at the end they drain, and nothing is interrupted."""
    async with AsyncExitStack() as stack:
        started = [Worker(engine, endpoint=endpoint, settings=settings) for _ in range(count)]
        for worker in started:
            running = asyncio.create_task(worker.run(signals=False))
            stack.push_async_callback(_ended, worker, running)
        yield started


async def _ended(worker: Worker, running: "asyncio.Task[WorkerExit]") -> None:
    worker.stop()
    assert await running is WorkerExit.CLEAN
