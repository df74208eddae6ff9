"""A real worker process: started, watched through its JSON log, scraped, signalled, killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from dialback.queue.topology import Endpoint

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60.0  # seconds for anything a test waits for


class WorkerProcess:
    """One ``dialback worker run``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                event = orjson.loads(line)
            except ValueError:
                event = {"message": "not JSON", "text": line.decode(errors="replace")}
            async with self._changed:
                self.log.append(event)
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[dict[str, Any]], bool], count: int = 1) -> None:
        """Wait until ``count`` log events satisfy the condition."""
        async with asyncio.timeout(LIMIT), self._changed:
            await self._changed.wait_for(lambda: sum(map(condition, self.log)) >= count)

    async def started(self) -> dict[str, Any]:
        """Wait until it works; return its first log event."""
        await self.until(lambda event: event["message"] == "worker started")
        return next(event for event in self.log if event["message"] == "worker started")

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The log lines of finished requests."""
        return [event for event in self.log if event["message"] == "request finished"]

    async def outcome_of(self, request_id: str) -> dict[str, Any]:
        """The log line of a finished request."""

        def wanted(event: dict[str, Any]) -> bool:
            return bool(
                event["message"] == "request finished" and event["request_id"] == request_id
            )

        await self.until(wanted)
        return next(event for event in self.log if wanted(event))

    async def metrics(self) -> dict[str, float]:
        """Scrape ``/metrics``: sample name with labels (worker_id left out) to value."""
        port = (await self.started())["status_port"]
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/metrics") as response,
        ):
            text = await response.text()
        return parse_metrics(text)

    async def metric_reaches(self, name: str, value: float) -> None:
        """Poll until a sample has this value."""
        async with asyncio.timeout(LIMIT):
            while (await self.metrics()).get(name) != value:  # noqa: ASYNC110 -- not our process
                await asyncio.sleep(0.02)

    async def status(self, path: str) -> tuple[int, Any]:
        """Get a path of the status server: status and JSON."""
        port = (await self.started())["status_port"]
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as response,
        ):
            return response.status, orjson.loads(await response.read())

    def terminate(self) -> None:
        """SIGTERM: drain."""
        self.process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(LIMIT):
            code = await self.process.wait()
            await self._reader
            return code


@asynccontextmanager
async def worker_process(
    engine: str, endpoint: Endpoint, server: str, **settings: object
) -> AsyncGenerator[WorkerProcess]:
    """Run a worker process; SIGKILL it at the end if it still runs."""
    environment = dict(os.environ) | {
        "NATS_SERVER": server,
        "DIALBACK_LOG_FORMAT": "json",
        **{f"DIALBACK_{name.upper()}": str(value) for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dialback", "worker", "run", engine, "--endpoint", str(endpoint)),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    worker = WorkerProcess(process)
    try:
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await worker.exit_code()


def parse_metrics(text: str) -> dict[str, float]:
    """Read Prometheus text: ``name`` or ``name{only="the last label"}`` to value, summed."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        bare, _, labels = name.partition("{")
        ours = [
            label
            for label in labels.rstrip("}").split(",")
            if label and not label.startswith(("dynamo_", "worker_id"))
        ]
        key = bare + ("{" + ",".join(ours) + "}" if ours else "")
        samples[key] = samples.get(key, 0.0) + float(value)
    return samples
