"""The worker's own business: start, health, refusing what it must not touch, reconnecting."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dialback import (
    ConfigError,
    Context,
    Requester,
    ServerUnavailableError,
    Settings,
    Worker,
    WorkerExit,
)
from dialback.errors import ConfigMismatchError
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, QueueSettings, Topology
from support.eventually import eventually

pytestmark = pytest.mark.integration


async def echo(request: Any, context: Context) -> AsyncIterator[Any]:
    yield request


class Careful:
    """An engine with everything optional."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_ready = False

    async def startup(self) -> None:
        self.calls.append("startup")

    def ready(self) -> bool:
        return self.is_ready

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls.append("generate")
        yield request

    def shutdown(self) -> None:
        self.calls.append("shutdown")


async def _status(worker: Worker, path: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{worker.status_port}{path}") as response,
    ):
        return response.status, await response.json(content_type=None)


async def test_health_follows_the_engine_and_the_pulls(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    settings = Settings.load(server=nats_server.url)
    engine = Careful()
    healthy: list[bool] = []
    worker = Worker(
        engine, endpoint=str(endpoint), settings=settings, on_healthy=lambda: healthy.append(True)
    )
    running = asyncio.create_task(worker.run(signals=False))

    async def reasons() -> Any:
        if worker.status_port is None:
            return None
        return (await _status(worker, "/ready"))[1].get("reasons")

    await eventually(reasons, lambda found: found == ["engine not ready"])
    assert (await _status(worker, "/health"))[0] == 503
    assert (await _status(worker, "/live"))[0] == 200
    engine.is_ready = True
    await eventually(reasons, lambda found: found == [])
    status, body = await _status(worker, "/health")
    async with Requester(settings) as requester:
        async with requester.generate(str(endpoint), {"a": 1}) as stream:
            assert [item async for item in stream] == [{"a": 1}]
    worker.stop()

    assert await running is WorkerExit.CLEAN
    assert (status, body["status"]) == (200, "ready")
    assert body["endpoints"] == {endpoint.endpoint: "ready"}
    assert engine.calls == ["startup", "generate", "shutdown"]
    assert healthy == [True, True], "one item, one clean end"


async def test_a_consumer_with_other_settings_is_refused_and_not_touched(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await Topology(queue_client.api, endpoint, QueueSettings(ack_wait=7)).ensure()
    settings = Settings.load(server=nats_server.url, status_port=-1)
    worker = Worker(echo, endpoint=str(endpoint), settings=settings)
    with pytest.raises(
        ConfigMismatchError, match=r"ack_wait is 7 s, wanted 30 s.*DIALBACK_ACK_WAIT"
    ):
        await worker.run(signals=False)
    info = await queue_client.api.consumer_info(endpoint.stream, "normal")
    assert info["config"]["ack_wait"] == 7_000_000_000


async def test_no_server_is_an_error_that_says_what_to_do(endpoint: Endpoint) -> None:
    settings = Settings.load(server="nats://127.0.0.1:1", connect_within=0.2)
    with pytest.raises(ServerUnavailableError, match="Start one with JetStream"):
        await Worker(echo, endpoint=str(endpoint), settings=settings).run(signals=False)


def _jetstream(folder: Path, *, answers: bool) -> Path:
    """Write a server's configuration: whether JetStream hears the one user."""
    config = folder / "server.conf"
    deaf = "" if answers else ', permissions: {publish: {deny: "$JS.API.>"}}'
    config.write_text(f'authorization: {{users: [{{user: "w", password: "w"{deaf}}}]}}\n')
    return config


async def _said(caplog: pytest.LogCaptureFixture, message: str) -> None:
    async def said() -> bool:
        return message in caplog.messages

    await eventually(said)


async def test_a_worker_that_starts_before_jetstream_answers_waits_for_it(
    tmp_path: Path, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = _jetstream(tmp_path, answers=False)
    async with EmbeddedServer(arguments=["-c", str(config)]) as server:
        settings = Settings.load(server=server.url, user="w", password="w", status_port=-1)  # noqa: S106
        worker = Worker(echo, endpoint=str(endpoint), settings=settings)
        running = asyncio.create_task(worker.run(signals=False))
        await _said(caplog, "waiting for JetStream")
        _jetstream(tmp_path, answers=True)
        os.kill(server.pid, signal.SIGHUP)
        await _said(caplog, "worker started")
        worker.stop()
        assert await running is WorkerExit.CLEAN


async def test_a_worker_that_waits_for_jetstream_can_be_told_to_end(
    tmp_path: Path, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    config = _jetstream(tmp_path, answers=False)
    async with EmbeddedServer(arguments=["-c", str(config)]) as server:
        settings = Settings.load(server=server.url, user="w", password="w", status_port=-1)  # noqa: S106
        worker = Worker(echo, endpoint=str(endpoint), settings=settings)
        running = asyncio.create_task(worker.run(signals=False))
        await _said(caplog, "waiting for JetStream")
        worker.stop()
        assert await running is WorkerExit.CLEAN


async def test_a_taken_status_port_is_an_error_that_says_what_to_do(endpoint: Endpoint) -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = Settings.load(server="nats://127.0.0.1:1", status_port=port)
    with pytest.raises(ConfigError, match="DIALBACK_STATUS_PORT"):
        await Worker(echo, endpoint=str(endpoint), settings=settings).run(signals=False)
    server.close()
    await server.wait_closed()


async def test_work_goes_on_after_the_server_was_killed_and_restarted(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    settings = Settings.load(server=own_server.url)
    worker = Worker(echo, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    async with Requester(settings) as requester:

        async def ask(number: int) -> list[Any]:
            async with requester.generate(str(endpoint), number, timeout=60) as stream:
                return [item async for item in stream]

        await eventually(lambda: _is_ready(worker))
        assert await ask(1) == [1]
        await own_server.kill()
        asking = asyncio.create_task(ask(2))
        await own_server.start()
        assert await asking == [2]
        assert await asyncio.gather(*map(ask, range(50))) == [[n] for n in range(50)]
    worker.stop()
    assert await running is WorkerExit.CLEAN
    sample = worker.metrics.registry.get_sample_value
    assert sample("dialback_reconnects_total") == 1
    assert sample("dialback_outcomes_total", {"outcome": "completed"}) == 52


async def _is_ready(worker: Worker) -> bool:
    return worker.status_port is not None and (await _status(worker, "/ready"))[0] == 200


class Slow:
    """An engine whose named method takes for ever."""

    def __init__(self, method: str) -> None:
        self._method = method
        self.entered = asyncio.Event()
        self.calls: list[str] = []

    async def _step(self, name: str) -> None:
        self.calls.append(name)
        if name == self._method:
            self.entered.set()
            await asyncio.Event().wait()

    async def startup(self) -> None:
        await self._step("startup")

    async def ready(self) -> bool:
        await self._step("ready")
        return True

    async def shutdown(self) -> None:
        await self._step("shutdown")

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield request


async def test_a_stop_ends_a_worker_whose_engine_is_still_starting(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    engine = Slow("startup")
    settings = Settings.load(server=nats_server.url)
    worker = Worker(engine, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    await engine.entered.wait()
    worker.stop()
    assert await running is WorkerExit.CLEAN
    assert engine.calls == ["startup", "shutdown"]


async def test_a_shutdown_that_hangs_ends_with_the_budget(
    nats_server: EmbeddedServer, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Slow("shutdown")
    settings = Settings.load(server=nats_server.url, shutdown_budget=0.1)
    worker = Worker(engine, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    await eventually(lambda: _is_ready(worker))
    worker.stop()
    assert await running is WorkerExit.CLEAN
    assert "the engine's shutdown() did not end in time and was cancelled" in caplog.messages


async def test_a_second_stop_does_not_wait_for_the_engines_shutdown(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    engine = Slow("shutdown")
    settings = Settings.load(server=nats_server.url, shutdown_budget=3600)
    worker = Worker(engine, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    await eventually(lambda: _is_ready(worker))
    worker.stop()
    await engine.entered.wait()
    worker.stop()
    assert await running is WorkerExit.CLEAN


async def test_a_ready_that_hangs_costs_readiness_and_no_lease(
    nats_server: EmbeddedServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.worker_engine._READY_TIMEOUT", 0.1)
    engine = Slow("ready")
    settings = Settings.load(server=nats_server.url, ack_wait=1)
    worker = Worker(engine, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    await engine.entered.wait()

    async def asked_again() -> bool:
        return engine.calls.count("ready") > 15  # longer than the stuck limit of 10 leases

    async with Requester(settings) as requester:
        await eventually(asked_again)
        async with requester.generate(str(endpoint), {"a": 1}) as stream:
            assert [item async for item in stream] == [{"a": 1}]
    assert (await _status(worker, "/ready"))[1]["reasons"] == ["engine not ready"]
    worker.stop()
    assert await running is WorkerExit.CLEAN


async def test_a_deleted_consumer_is_created_again_and_its_lane_served(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    settings = Settings.load(server=nats_server.url)
    worker = Worker(echo, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    await eventually(lambda: _is_ready(worker))
    await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.high")
    async with Requester(settings) as requester:
        for lane in ("normal", "high"):
            async with requester.generate(str(endpoint), lane, lane=lane) as stream:
                assert [item async for item in stream] == [lane]
    worker.stop()
    assert await running is WorkerExit.CLEAN
