"""First deliveries that do not ask what the requester has: a real worker, server and requester."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from dialback import Context, EndState, Requester, Settings, Worker, WorkerExit
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from dialback.transport.address import Address, parse_address
from dialback.transport.listener import ResponseListener
from dialback.transport.two_part import decode
from support.eventually import eventually
from support.frames import request_payload, tcp_info
from support.queue_rig import nothing_left, provision
from support.resumable_worker import resuming, superseded
from support.scripted_worker import PROLOGUE, item

pytestmark = pytest.mark.integration


class Counting:
    """Counts to 3 from where the caller is.

    Attributes:
        calls: Delivery and first item of each call.
    """

    resume = "continue"

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls.append((context.delivery, context.resume_from))
        for number in range(context.resume_from, 4):
            yield number


class Service:
    """A worker in this event loop, and what it counted."""

    def __init__(self) -> None:
        self.engine = Counting()
        self.registry = CollectorRegistry()

    async def counted(self, series: str, label: str) -> dict[str, float]:
        """The values of a series that are not zero, by one label."""
        return {
            sample.labels[label]: sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == series and sample.value
        }

    async def ended(self, **outcomes: float) -> dict[str, float]:
        """Wait for these outcomes; return how the deliveries ended."""
        await eventually(
            lambda: self.counted("dialback_outcomes_total", "outcome"), lambda f: f == outcomes
        )
        return await self.counted("dialback_deliveries_total", "end")


@asynccontextmanager
async def serving(server: EmbeddedServer, endpoint: Endpoint) -> AsyncGenerator[Service]:
    service = Service()
    worker = Worker(
        service.engine,
        endpoint=str(endpoint),
        settings=Settings.load(server=server.url, shutdown_budget=5),
        registry=service.registry,
    )
    running = asyncio.create_task(worker.run(signals=False))
    try:
        yield service
    finally:
        worker.stop()
        assert await running is WorkerExit.CLEAN


@pytest.fixture
async def queue(queue_client: QueueClient, endpoint: Endpoint) -> Endpoint:
    """The endpoint's queue, without any worker."""
    await provision(queue_client, endpoint)
    return endpoint


async def _home(client: QueueClient, queue: Endpoint) -> tuple[Address, str]:
    """Address and subject of the stream that the queued request asks for."""
    message = await client.api.get_message(queue.stream)
    info = orjson.loads(orjson.loads(decode(message.payload).header)["connection_info"]["info"])
    return parse_address(info["address"]), info["subject"]


async def test_a_first_delivery_is_the_only_one(
    nats_server: EmbeddedServer, queue_client: QueueClient, queue: Endpoint
) -> None:
    async with Requester(Settings.load(server=nats_server.url)) as requester:
        async with (
            serving(nats_server, queue) as service,
            requester.generate(str(queue), {}, keep_history=True) as stream,
        ):
            assert [number async for number in stream] == [0, 1, 2, 3]
            assert await service.ended(completed=1) == {"settled": 1}
    assert service.engine.calls == [(1, 0)]
    await nothing_left(queue_client, queue)


async def test_one_that_is_not_the_first_is_handed_back_and_the_next_resumes(
    nats_server: EmbeddedServer, queue_client: QueueClient, queue: Endpoint
) -> None:
    """As with a new consumer, whose numbers begin anew while another worker serves the stream."""
    async with (
        Requester(Settings.load(server=nats_server.url)) as requester,
        requester.generate(str(queue), {}, keep_history=True) as stream,
    ):
        address, subject = await _home(queue_client, queue)
        async with resuming(address, subject, delivery=1, epoch=1) as (other, _):
            await other.send(PROLOGUE + item("a") + item("b"))
            assert [await anext(stream), await anext(stream)] == ["a", "b"]
            async with serving(nats_server, queue) as service:
                assert [number async for number in stream] == [2, 3]
                assert await service.ended(completed=1) == {"handed_back": 1, "settled": 1}
            assert await other.frame() == superseded(2)
    assert service.engine.calls[-1] == (2, 2)
    assert service.engine.calls[:-1] in ([], [(1, 0)])
    assert await service.counted("dynamo_component_errors_total", "error_type") == {}
    assert (stream.end, stream.delivery) == (EndState.COMPLETE, 2)
    assert (stream.items, stream.interruptions, stream.resumed) == (4, 1, 1)
    await nothing_left(queue_client, queue)


async def test_one_after_a_worker_that_brought_nothing_is_handed_back_and_the_next_starts(
    nats_server: EmbeddedServer, queue_client: QueueClient, queue: Endpoint
) -> None:
    async with (
        Requester(Settings.load(server=nats_server.url)) as requester,
        requester.generate(str(queue), {}) as stream,
    ):
        async with resuming(*await _home(queue_client, queue)) as (other, _):
            other.reset()
        async with serving(nats_server, queue) as service:
            assert [number async for number in stream] == [0, 1, 2, 3]
            assert await service.ended(completed=1) == {"handed_back": 1, "settled": 1}
    assert service.engine.calls[-1] == (2, 0)
    await nothing_left(queue_client, queue)


async def test_a_stream_that_is_over_is_client_gone(
    nats_server: EmbeddedServer, queue_client: QueueClient, queue: Endpoint
) -> None:
    listener = ResponseListener()
    address = str(await listener.start())
    payload = request_payload(address, {}, info=tcp_info(address, resumable=1))
    await queue_client.publisher.publish(queue.request_subject(Lane.NORMAL, "req-1"), payload, {})
    async with serving(nats_server, queue) as service:
        assert await service.ended(client_gone=1) == {"handed_back": 1, "settled": 1}
    await listener.close()
    await nothing_left(queue_client, queue)
