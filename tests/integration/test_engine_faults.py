"""Engines with faults in real workers: what the operator reads, and that a worker lives on."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dialback import EngineRefusedError, Requester, ResponseError, Settings, Worker, WorkerExit
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.letters import provision

pytestmark = pytest.mark.integration

UNABLE = """
class Engine:
    def startup(self):
        raise OSError("no GPU")

    async def generate(self, request):
        yield request
"""


async def test_a_worker_whose_engine_cannot_start_ends_with_a_sentence(
    nats_server: EmbeddedServer, endpoint: Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "engine_here.py").write_text(UNABLE)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "dialback", "worker", "run", "engine_here:Engine", "-e", str(endpoint)),
        *("-s", nats_server.url),
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, words = await process.communicate()
    *log, sentence = words.decode().splitlines()
    assert process.returncode == 1
    assert sentence == "error: engine 'engine_here:Engine': startup() failed: OSError: no GPU"
    assert all(line.startswith("{") for line in log)  # the traceback is a field of a log line


async def exiting(request: Any) -> AsyncIterator[Any]:
    """Exit before or after the first item, or not at all."""
    if request == "after":
        yield request
    if request != "never":
        sys.exit(3)
    yield request


async def leaving(request: Any) -> AsyncIterator[Any]:
    """Refuse by exiting."""
    if request == "refuse":
        sys.exit(3)
    return exiting(request)


async def test_a_worker_lives_on_when_its_engine_exits(
    nats_server: EmbeddedServer,
    queue_client: QueueClient,
    endpoint: Endpoint,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await provision(queue_client, endpoint)
    settings = Settings.load(server=nats_server.url, status_port=-1)
    worker = Worker(leaving, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    async with Requester(settings) as requester:

        async def answer(request: str) -> list[Any]:
            async with requester.generate(str(endpoint), request) as stream:
                return [item async for item in stream]

        with pytest.raises(EngineRefusedError, match=r"the engine raised SystemExit\(3\)"):
            await answer("refuse")
        for request in ("before", "after"):
            with pytest.raises(ResponseError, match=r"the engine raised SystemExit\(3\)"):
                await answer(request)
        assert await answer("never") == ["never"]
    worker.stop()
    assert await running is WorkerExit.CLEAN
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert [r.message for r in warnings] == ["the engine raised an error"] * 3
