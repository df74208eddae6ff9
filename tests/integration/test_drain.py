"""The end of a worker: one budget, leases renewed all the while, an exit code that says how."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from dialback import Context, Requester, Settings, Worker, WorkerExit
from dialback.errors import DialbackError
from dialback.outcomes import DeliveryEnd, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.eventually import eventually
from support.queue_rig import LIMIT, lane_state, nothing_left, stored

pytestmark = pytest.mark.integration


class Gate:
    """An engine that yields once, and again when it is let."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield request
        self.entered.set()
        await self.open.wait()
        yield "end"


class Rig:
    """A worker that serves one request, and will be told to end."""

    def __init__(self, settings: Settings, endpoint: Endpoint) -> None:
        self.engine = Gate()
        self.worker = Worker(self.engine, endpoint=str(endpoint), settings=settings)
        self.running = asyncio.create_task(self.worker.run(signals=False))

    async def ends_with(self, code: WorkerExit) -> None:
        async with asyncio.timeout(LIMIT):
            assert await self.running is code

    def count(self, name: str, **label: str) -> float | None:
        return self.worker.metrics.registry.get_sample_value(name, label)


@asynccontextmanager
async def serving(
    server: EmbeddedServer, endpoint: Endpoint, **more: object
) -> AsyncGenerator[tuple[Rig, "asyncio.Task[list[Any]]"]]:
    """A worker in the middle of its only request, and the task that reads the answer."""
    settings = Settings.load(server=server.url, status_port=-1, slots=1, **more)
    rig = Rig(settings, endpoint)

    async def pulled() -> bool:
        return rig.worker.metrics.service.last_pull > 0

    async with Requester(settings) as requester:

        async def ask() -> list[Any]:
            async with requester.generate(str(endpoint), "begin") as stream:
                return [item async for item in stream]

        await eventually(pulled)
        asking = asyncio.create_task(ask())
        await rig.engine.entered.wait()
        yield rig, asking
        rig.engine.open.set()
        with suppress(DialbackError):
            await asking


async def test_what_runs_is_finished_and_its_lease_is_renewed_until_then(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with serving(nats_server, endpoint, ack_wait=1) as (rig, asking):
        rig.worker.stop()
        before = await lane_state(queue_client, endpoint)

        async def waited_twice_the_lease() -> bool:
            state = await lane_state(queue_client, endpoint)
            assert (state["num_ack_pending"], state["num_redelivered"]) == (1, 0)
            return float(state["ts"][17:19]) != float(before["ts"][17:19])

        await eventually(waited_twice_the_lease)
        before = await lane_state(queue_client, endpoint)
        await eventually(waited_twice_the_lease)
        rig.engine.open.set()
        assert await asking == ["begin", "end"]
        await rig.ends_with(WorkerExit.CLEAN)
    await nothing_left(queue_client, endpoint)


async def test_when_the_budget_is_used_up_what_runs_is_interrupted_and_the_code_is_75(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with serving(nats_server, endpoint, shutdown_budget=4, stop_grace=0.1) as (rig, asking):
        rig.worker.stop()
        await rig.ends_with(WorkerExit.INTERRUPTED)
        with pytest.raises(DialbackError):
            await asking
    assert rig.count("dialback_outcomes_total", outcome=Outcome.INTERRUPTED) == 1
    await nothing_left(queue_client, endpoint)


async def test_a_second_stop_interrupts_what_runs_and_the_code_is_143(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with serving(nats_server, endpoint, shutdown_budget=3600) as (rig, asking):
        rig.worker.stop()
        rig.worker.stop()
        await rig.ends_with(WorkerExit.FORCED)
        with pytest.raises(DialbackError):
            await asking
    assert rig.count("dialback_outcomes_total", outcome=Outcome.INTERRUPTED) == 1
    await nothing_left(queue_client, endpoint)


async def test_a_request_that_another_worker_took_over_does_not_change_the_code(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with serving(own_server, endpoint, ack_wait=1, shutdown_budget=60) as (rig, asking):
        rig.worker.stop()
        await own_server.kill()  # no renewal arrives any more, so the lease is lost
        await rig.ends_with(WorkerExit.CLEAN)
        with pytest.raises(DialbackError):
            await asking
        await own_server.start()
    assert rig.count("dialback_deliveries_total", end=DeliveryEnd.SUPERSEDED) == 1


async def test_what_waits_in_the_queue_stays_there_for_the_next_worker(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    settings = Settings.load(server=nats_server.url)
    async with serving(nats_server, endpoint) as (rig, asking), Requester(settings) as other:
        async with other.generate(str(endpoint), "next") as stream:
            rig.worker.stop()
            rig.engine.open.set()
            await rig.ends_with(WorkerExit.CLEAN)
            assert await asking == ["begin", "end"]
            state = await lane_state(queue_client, endpoint)
            assert (state["num_pending"], state["num_ack_pending"]) == (1, 0)
            assert await stored(queue_client, endpoint.stream) == 1
            next_one = Rig(settings, endpoint)
            next_one.engine.open.set()
            assert [item async for item in stream] == ["next", "end"]
            next_one.worker.stop()
            await next_one.ends_with(WorkerExit.CLEAN)
    await nothing_left(queue_client, endpoint)
