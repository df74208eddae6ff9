"""Connections that are kept between two requests: real worker processes, real sockets."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import psutil
import pytest

from dialback import EndState, Requester, Settings
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.eventually import eventually
from support.queue_rig import nothing_left
from support.worker_process import WorkerProcess, worker_process

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

REQUESTS = 50
ITEMS = 5
ENGINE = "examples.counter:generate"
LONG = 30
"""Seconds that a worker keeps a connection: longer than a test takes."""


def _requester(server: EmbeddedServer, port: int = 0) -> Requester:
    return Requester(Settings.load(server=server.url, response_port=port))


@pytest.fixture
async def requester(nats_server: EmbeddedServer) -> AsyncGenerator[Requester]:
    async with _requester(nats_server) as requester:
        yield requester


def _port(requester: Requester) -> int:
    return int(requester.address.rpartition(":")[2])


def _accepted(port: int) -> set[int]:
    """The workers' ports of the connections that this process has accepted and not closed."""
    connections = psutil.Process().net_connections("tcp")
    return {
        connection.raddr.port
        for connection in connections
        if connection.raddr and connection.laddr.port == port
    }


async def _has_accepted(port: int, number: int) -> None:
    async def count() -> int:
        return len(_accepted(port))

    await eventually(count, lambda connections: connections == number)


async def _ask(
    requester: Requester, endpoint: Endpoint, count: int = ITEMS, delay: float = 0.0
) -> str:
    """Ask for one whole stream; return the request's id."""
    async with requester.generate(str(endpoint), {"n": count, "delay": delay}) as stream:
        assert [item["i"] async for item in stream] == list(range(count))
    assert (stream.end, stream.interruptions) == (EndState.COMPLETE, 0)
    return stream.request_id


async def _dials(worker: WorkerProcess, ids: list[str]) -> list[int]:
    """Dials of each request, all of which this worker has completed at once."""
    events = [await worker.outcome_of(request_id) for request_id in ids]
    assert {(event["outcome"], event["delivery"]) for event in events} == {("completed", 1)}
    return [event["dials"] for event in events]


async def test_requests_one_after_the_other_share_one_connection(
    nats_server: EmbeddedServer,
    queue_client: QueueClient,
    endpoint: Endpoint,
    requester: Requester,
) -> None:
    async with worker_process(ENGINE, endpoint, nats_server.url, idle_timeout=LONG) as worker:
        await worker.started()
        ids: list[str] = []
        seen: set[int] = set()
        for number in range(REQUESTS):
            ids.append(await _ask(requester, endpoint, number % 7))
            seen |= _accepted(_port(requester))
        assert await _dials(worker, ids) == [1] + [0] * (REQUESTS - 1)
        assert len(seen) == 1
        assert _accepted(_port(requester)) == seen
        metrics = await worker.metrics()
        assert metrics["dynamo_component_requests_total"] == REQUESTS
        assert metrics['dialback_outcomes_total{outcome="completed"}'] == REQUESTS
        assert metrics["dynamo_component_inflight_requests"] == 0
        assert not any(
            value
            for name, value in metrics.items()
            if name.startswith(("dynamo_component_errors_total", "dialback_publish_failures_total"))
        )
        assert [event["request_id"] for event in worker.finished] == ids
        assert {event["level"] for event in worker.log} == {"INFO"}
        await nothing_left(queue_client, endpoint)


async def test_what_is_not_resumable_has_a_connection_of_its_own(
    nats_server: EmbeddedServer, endpoint: Endpoint, requester: Requester
) -> None:
    async with worker_process(ENGINE, endpoint, nats_server.url, idle_timeout=LONG) as worker:
        await worker.started()
        ids = [await _ask(requester, endpoint)]
        async with requester.generate(str(endpoint), {"n": 2}, resumable=False) as stream:
            assert [item["i"] async for item in stream] == [0, 1]
        ids += [stream.request_id, await _ask(requester, endpoint)]
        assert await _dials(worker, ids) == [1, 1, 0]
        await _has_accepted(_port(requester), 1)


@pytest.mark.parametrize("same_port", [False, True], ids=["another port", "the same port"])
async def test_the_first_request_of_a_requester_that_was_started_again_is_served(
    nats_server: EmbeddedServer, endpoint: Endpoint, same_port: bool
) -> None:
    async with worker_process(ENGINE, endpoint, nats_server.url, idle_timeout=LONG) as worker:
        await worker.started()
        async with _requester(nats_server) as first:
            port = _port(first)
            ids = [await _ask(first, endpoint) for _ in range(2)]
        async with _requester(nats_server, port if same_port else 0) as second:
            assert (_port(second) == port) is same_port
            ids += [await _ask(second, endpoint) for _ in range(2)]
            assert await _dials(worker, ids) == [1, 0, 1, 0]
            await _has_accepted(_port(second), 1)


async def test_the_next_request_after_a_kill_is_served_by_another_worker(
    nats_server: EmbeddedServer,
    queue_client: QueueClient,
    endpoint: Endpoint,
    requester: Requester,
) -> None:
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                worker_process(ENGINE, endpoint, nats_server.url, idle_timeout=LONG, ack_wait=2)
            )
            for _ in range(2)
        ]
        for worker in workers:
            await worker.started()
        first = await _ask(requester, endpoint)
        served = [asyncio.create_task(worker.outcome_of(first)) for worker in workers]
        await asyncio.wait(served, return_when=asyncio.FIRST_COMPLETED)
        killed, other = workers if served[0].done() else reversed(workers)
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        assert len(_accepted(_port(requester))) == 1
        await killed.kill()
        await _has_accepted(_port(requester), 0)
        again = [await _ask(requester, endpoint) for _ in range(3)]
        events = [await other.outcome_of(request_id) for request_id in again]
        assert [event["outcome"] for event in events] == ["completed"] * 3
        assert [event["dials"] for event in events] == [1, 0, 0]
        await nothing_left(queue_client, endpoint)


async def test_without_a_time_each_request_has_a_connection_of_its_own(
    nats_server: EmbeddedServer, endpoint: Endpoint, requester: Requester
) -> None:
    async with worker_process(ENGINE, endpoint, nats_server.url, idle_timeout=0) as worker:
        await worker.started()
        ids = [await _ask(requester, endpoint) for _ in range(10)]
        assert await _dials(worker, ids) == [1] * 10
        await _has_accepted(_port(requester), 0)
        metrics = await worker.metrics()
        assert metrics['dialback_outcomes_total{outcome="completed"}'] == 10


async def test_a_connection_that_nobody_needs_is_closed_after_a_time(
    nats_server: EmbeddedServer, endpoint: Endpoint, requester: Requester
) -> None:
    async with worker_process(ENGINE, endpoint, nats_server.url, idle_timeout=0.05) as worker:
        await worker.started()
        first = await _ask(requester, endpoint)
        await _has_accepted(_port(requester), 0)
        assert await _dials(worker, [first, await _ask(requester, endpoint)]) == [1, 1]


async def test_a_worker_that_is_told_to_end_closes_what_it_keeps_and_ends(
    nats_server: EmbeddedServer, endpoint: Endpoint, requester: Requester
) -> None:
    async with worker_process(ENGINE, endpoint, nats_server.url, idle_timeout=LONG) as worker:
        await worker.started()
        ids = await asyncio.gather(*(_ask(requester, endpoint, delay=0.01) for _ in range(3)))
        dials = await _dials(worker, ids)
        await _has_accepted(_port(requester), sum(dials))
        worker.terminate()
        async with asyncio.timeout(LONG - 5):  # it does not wait for them
            assert await worker.exit_code() == 0
        await _has_accepted(_port(requester), 0)
        assert not [event for event in worker.log if event["level"] != "INFO"]
