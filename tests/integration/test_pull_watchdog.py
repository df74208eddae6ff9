"""Pulls that cannot be revived end the worker with 70; nothing else does."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dialback import Context, Requester, Settings, Worker, WorkerExit
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.pull_inbox import PullInbox
from dialback.queue.pull_settings import PullSettings
from dialback.queue.topology import Endpoint
from dialback.worker_health import PullHealth
from support.eventually import eventually
from support.guarded_server import GuardedServer, guarded_server
from support.queue_rig import LIMIT, Taken, nothing_left, provision, pulling, put

pytestmark = pytest.mark.integration


class Gate:
    """An engine that answers when it is let."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.entered.set()
        await self.open.wait()
        yield request


def allowed(server: GuardedServer, **more: object) -> Settings:
    return Settings.load(
        server=server.url, user=server.USER, password=server.PASSWORD, status_port=-1, **more
    )


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter limit than settings allow."""

    def short(limit: float) -> PullHealth:
        del limit
        return PullHealth(0.6)

    monkeypatch.setattr("dialback.worker.PullHealth", short)


async def test_when_pulls_stay_unanswered_what_runs_is_finished_and_the_exit_code_is_70(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Gate()
    async with guarded_server(tmp_path) as server:
        settings = allowed(server, slots=2)
        impatient(monkeypatch)
        worker = Worker(engine, endpoint=str(endpoint), settings=settings)
        running = asyncio.create_task(worker.run(signals=False))
        queue = await QueueClient.open(settings.server_address(), name="t", role="tests")
        await eventually(lambda: _pulled(worker))
        async with Requester(settings) as requester:
            async with requester.generate(str(endpoint), {"a": 1}) as stream:
                await engine.entered.wait()
                server.forbid_pulls()
                await eventually(lambda: _draining(worker))
                engine.open.set()
                assert [item async for item in stream] == [{"a": 1}]
        async with asyncio.timeout(LIMIT):
            assert await running is WorkerExit.PULLS_DEAD
        await nothing_left(queue, endpoint)
        await queue.close()
    sample = worker.metrics.registry.get_sample_value
    assert sample("dialback_outcomes_total", {"outcome": "completed"}) == 1


async def test_a_pull_loop_that_dies_is_logged_and_ends_the_worker_with_70(
    nats_server: EmbeddedServer,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(_: PullInbox) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(PullInbox, "open", broken)
    settings = Settings.load(server=nats_server.url, status_port=-1)
    worker = Worker(Gate(), endpoint=str(endpoint), settings=settings)
    async with asyncio.timeout(LIMIT):
        assert await worker.run(signals=False) is WorkerExit.PULLS_DEAD
    (record,) = [r for r in caplog.records if vars(r).get("reason") == "the pull loop failed"]
    assert record.levelno == logging.ERROR
    assert "a bug" in caplog.text


async def test_a_worker_that_is_not_connected_waits_for_ever(
    own_server: EmbeddedServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    engine = Gate()
    engine.open.set()
    settings = Settings.load(server=own_server.url, status_port=-1)
    worker = Worker(engine, endpoint=str(endpoint), settings=settings)
    looks: list[bool] = []
    look = PullHealth.look

    def counted(health: PullHealth, *, heard: float, answered: float, pulling: bool) -> None:
        looks.append(pulling)
        look(health, heard=heard, answered=answered, pulling=pulling)

    monkeypatch.setattr(PullHealth, "look", counted)
    running = asyncio.create_task(worker.run(signals=False))
    await eventually(lambda: _pulled(worker))
    await own_server.kill()

    async def looked_in_vain() -> bool:
        return looks[-4:] == [False] * 4  # for longer than the limit

    await eventually(looked_in_vain)
    assert not running.done()
    await own_server.start()
    async with Requester(settings) as requester:
        async with requester.generate(str(endpoint), 1) as stream:
            assert [item async for item in stream] == [1]
    worker.stop()
    assert await running is WorkerExit.CLEAN


async def test_a_paused_consumer_still_gives_signs_of_life(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="tests")
    await provision(client, endpoint)
    for lane in ("high", "normal", "low"):
        await client.api.request(
            f"CONSUMER.PAUSE.{endpoint.stream}.{lane}", {"pause_until": "2099-01-01T00:00:00Z"}
        )
    await put(client, endpoint, "r1")
    taken = Taken(slots=1)
    quick = PullSettings(heartbeat=0.2, expires=2)
    async with pulling(client.connection, taken, stream=endpoint.stream, settings=quick) as puller:
        seen: set[float] = set()

        async def signs() -> int:
            seen.add(puller.heard)
            return len(seen)

        await eventually(signs, lambda count: count > 8)
    assert taken.messages == []
    await client.close()


async def _pulled(worker: Worker) -> bool:
    return worker.metrics.service.last_pull > 0


async def _draining(worker: Worker) -> bool:
    return worker.metrics.registry.get_sample_value("dialback_drain_state") == 1
