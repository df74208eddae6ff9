"""Our side of an interop test: a worker in the test's process, watched through its log."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from typing_extensions import override

from dialback import Settings, Worker, WorkerExit, errors
from dialback.queue.topology import Endpoint
from interop.peers import engine

engine.ERRORS.update({name: getattr(errors, name) for name in engine.DYNAMO_ERRORS})

ENGINE: Final = "tests.interop.peers.engine:generate"
"""The suite's engine, for a worker process."""
LIMIT: Final = 60.0  # seconds for anything a test waits for
_ENGINE_RAISED = "the engine raised an error"


class OurWorker(logging.Handler):
    """What a worker of ours said.

    Attributes:
        records: Its log, INFO and above.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []
        self._said = asyncio.Event()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._said.set()

    async def said(self, message: str, **facts: object) -> dict[str, Any]:
        """Wait for a log line with these facts; return all its facts."""
        async with asyncio.timeout(LIMIT):
            while True:
                for record in self.records:
                    known = vars(record)
                    if record.message == message and known.items() >= facts.items():
                        return known
                self._said.clear()
                await self._said.wait()

    async def outcome_of(self, request_id: str) -> dict[str, Any]:
        """Wait for a request's end; return its log line's facts."""
        return await self.said("request finished", request_id=request_id)

    @property
    def loud(self) -> list[str]:
        """Its log lines above INFO, but for those of errors that the suite's engine raises."""
        lines = [record for record in self.records if record.levelno > logging.INFO]
        lines = [record for record in lines if record.getMessage() != _ENGINE_RAISED]
        return [f"{record.levelname} {record.getMessage()} {vars(record)}" for record in lines]


@asynccontextmanager
async def our_worker(
    server: str, endpoint: Endpoint, **settings: object
) -> AsyncGenerator[OurWorker]:
    """Run a worker with the suite's engine; it must drain cleanly at the end."""
    said = OurWorker()
    logger = logging.getLogger("dialback")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(said)
    chosen = Settings.load(server=server, status_port=-1, shutdown_budget=5, **settings)
    worker = Worker(engine.generate, endpoint=str(endpoint), settings=chosen)
    running = asyncio.create_task(worker.run(signals=False))
    try:
        await said.said("worker started")
        yield said
    finally:
        worker.stop()
        code = await running
        logger.removeHandler(said)
        logger.setLevel(before)
    assert code is WorkerExit.CLEAN
