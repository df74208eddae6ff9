"""F18: a worker that NATS does not let in, or lets do nothing any more, is no silent zombie."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support import figures
from support.chaos import ENGINE
from support.worker_process import WorkerProcess, worker_process

pytestmark = pytest.mark.ci

USER, PASSWORD = "worker", "secret"


class Guard:
    """A nats-server with one user, whose password and rights can be changed while it runs."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "server.conf"
        self.write()
        self.server = EmbeddedServer(arguments=["-c", str(self._config)])

    def write(self, *, password: str = PASSWORD, denied: str = "") -> None:
        """Write the configuration that is read at the next start or reload."""
        rights = f', permissions: {{publish: {{deny: "{denied}"}}}}' if denied else ""
        user = f'{{user: "{USER}", password: "{password}"{rights}}}'
        self._config.write_text(f"authorization: {{users: [{user}]}}\n")

    def reload(self) -> None:
        """Make it read its configuration again."""
        os.kill(self.server.pid, signal.SIGHUP)


@pytest.fixture
async def guard(tmp_path: Path) -> AsyncGenerator[Guard]:
    guard = Guard(tmp_path)
    async with guard.server:
        yield guard


@asynccontextmanager
async def worker(
    guard: Guard, endpoint: Endpoint, password: str = PASSWORD
) -> AsyncGenerator[WorkerProcess]:
    async with worker_process(
        ENGINE, endpoint, guard.server.url, user=USER, password=password, ack_wait=3
    ) as process:
        yield process


def problems(process: WorkerProcess) -> list[str]:
    """What it logged as a warning or an error."""
    return [str(e) for e in process.log if e.get("level") in {"WARNING", "ERROR", None}]


async def test_f18_a_wrong_password_ends_a_worker_with_a_sentence(
    guard: Guard, endpoint: Endpoint
) -> None:
    async with worker(guard, endpoint, "wrong") as process:
        code = await process.exit_code()
    assert code != 0
    assert "refuses the credentials" in str(process.log)
    figures.record(fault="F18 wrong password at the start", exit_code=code)


async def test_f18_credentials_that_are_withdrawn_end_a_worker(
    guard: Guard, endpoint: Endpoint
) -> None:
    async with worker(guard, endpoint) as process:
        await process.started()
        begun = asyncio.get_running_loop().time()
        guard.write(password="another")  # noqa: S106 -- of this test
        guard.reload()
        code = await process.exit_code()
        duration = asyncio.get_running_loop().time() - begun
    assert code != 0
    assert problems(process)
    figures.record(fault="F18 password changed while running", exit_code=code, after=duration)


async def test_f18_a_right_that_is_withdrawn_is_logged(guard: Guard, endpoint: Endpoint) -> None:
    async with worker(guard, endpoint) as process:
        await process.started()
        begun = asyncio.get_running_loop().time()
        guard.write(denied="$JS.API.CONSUMER.MSG.NEXT.>")
        guard.reload()
        await process.until(
            lambda event: "permissions violation" in str(event).lower() and "level" in event
        )
        duration = asyncio.get_running_loop().time() - begun
    figures.record(fault="F18 right to pull withdrawn while running", logged_after=duration)
