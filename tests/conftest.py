"""Fixtures for all tests: a clean environment, a real nats-server, an endpoint of one's own."""

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Generator

import pytest

from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support import figures

_TERMINAL = {"FORCE_COLOR", "NO_COLOR", "COLUMNS"}
_LEASE_THREAD = "dialback-leases"
_CLOSING = 10.0  # seconds for a lease thread to close its connection after its test
_blamed: set[threading.Thread] = set()  # so that a thread fails one test, and not all after it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := figures.table():
        terminalreporter.section("what was observed")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("DIALBACK_", "NATS_", "DYN_")) or name in _TERMINAL:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_lease_thread_is_left() -> Generator[None]:
    """Fail the test that leaves a lease thread behind: it would disturb other tests later."""
    yield
    left = {thread for thread in threading.enumerate() if thread.name == _LEASE_THREAD} - _blamed
    for thread in left:
        thread.join(_CLOSING)
    running = {thread for thread in left if thread.is_alive()}
    _blamed.update(running)
    assert not running, "this test leaves a lease thread behind"


@pytest.fixture(scope="session")
def nats_server() -> Generator[EmbeddedServer]:
    """A real nats-server for the whole run. It fails, and does not skip, when missing."""
    server = EmbeddedServer()
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def own_server() -> AsyncGenerator[EmbeddedServer]:
    """A nats-server for one test, to be killed or stopped by it."""
    async with EmbeddedServer() as server:
        yield server


@pytest.fixture
def endpoint() -> Endpoint:
    """An endpoint that no other test uses."""
    return Endpoint("test", "backend", f"e{secrets.token_hex(4)}")


@pytest.fixture
async def queue_client(nats_server: EmbeddedServer) -> AsyncGenerator[QueueClient]:
    """A connected client of the shared server."""
    client = await QueueClient.open(
        ServerAddress(url=nats_server.url), name="tests", role="operator"
    )
    yield client
    await client.close()
