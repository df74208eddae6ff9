"""dialback: a nats-server, a worker as its user starts it, and a requester."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks.child import ROOT, Child, ChildError, Usage
from benchmarks.systems.system import System
from dialback.queue.embedded_server import EmbeddedServer

_ENDPOINT: Final = "bench.dialback.generate"
_ENGINE: Final = "benchmarks.peers.engine:generate"
_STARTED: Final = b'"worker started"'
_START: Final = 30.0  # seconds
_LEAVE: Final = 40.0  # seconds; more than the default shutdown budget
_LAST_WORDS: Final = 2000  # bytes of a worker's log in an error


@asynccontextmanager
async def dialback(
    *, slots: int, processes: int = 1, settings: Mapping[str, str] | None = None
) -> AsyncGenerator[System]:
    """Run a server, so many worker processes and a client.

    Args:
        slots: Requests that each worker process serves at the same time.
        processes: Worker processes; from 2 on they are supervised.
        settings: More variables for the worker, by name: ``DIALBACK_…``.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer())
        variables = {**os.environ, "NATS_SERVER": server.url, **(settings or {})}
        worker = _worker(slots, processes, variables)
        worker_usage = await stack.enter_async_context(worker)
        client = await stack.enter_async_context(
            Child(
                sys.executable,
                "benchmarks.peers.dialback_client",
                ["uvloop", _ENDPOINT],
                environment={"NATS_SERVER": server.url},
            )
        )
        yield System(client, {"worker": worker_usage, "server": Usage(server.pid)})


@asynccontextmanager
async def _worker(
    slots: int, processes: int, variables: Mapping[str, str]
) -> AsyncGenerator[Usage]:
    """Run a worker; its log goes to a file, as most do."""
    command = [sys.executable, "-m", "dialback", "worker", "run", _ENGINE, "-e", _ENDPOINT]
    command += ["--slots", str(slots), "--processes", str(processes)]
    with tempfile.NamedTemporaryFile(prefix="dialback-worker-", suffix=".log") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=variables, stdin=asyncio.subprocess.DEVNULL, stderr=log
        )
        try:
            await _started(process, Path(log.name), processes)
            yield Usage(process.pid)
        finally:
            await _ended(process)


async def _started(process: asyncio.subprocess.Process, log: Path, processes: int) -> None:
    """Wait until each worker process has said that it started.

    Raises:
        ChildError: If they do not, with the end of their log.
    """
    try:
        async with asyncio.timeout(_START):
            while _started_in(log) < processes:
                if process.returncode is not None:
                    raise ChildError(f"the worker ended: {_end_of(log)}")
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise ChildError(f"the worker did not start: {_end_of(log)}") from error


def _started_in(log: Path) -> int:
    return log.read_bytes().count(_STARTED)


def _end_of(log: Path) -> str:
    return log.read_bytes()[-_LAST_WORDS:].decode(errors="replace")


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_LEAVE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
