"""Two worker processes and one requester: everything arrives, once and in order."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from dialback import EndState, Requester, Settings
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support.worker_process import WorkerProcess, worker_process

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

REQUESTS = 500
ITEMS = 5


async def _queue_state(client: QueueClient, endpoint: Endpoint) -> tuple[int, int]:
    """Messages in the stream, and acknowledgements pending."""
    info = await client.api.stream_info(endpoint.stream)
    lanes = [await client.api.consumer_info(endpoint.stream, lane) for lane in Lane]
    return info["state"]["messages"], sum(lane["num_ack_pending"] for lane in lanes)


async def test_five_hundred_requests_over_two_worker_processes(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                worker_process("examples.counter:generate", endpoint, nats_server.url)
            )
            for _ in range(2)
        ]
        for worker in workers:
            await worker.started()
        requester = await stack.enter_async_context(
            Requester(Settings.load(server=nats_server.url))
        )
        at_once = asyncio.Semaphore(64)

        async def ask(number: int) -> tuple[int, list[int], EndState | None]:
            async with at_once, requester.generate(str(endpoint), {"n": ITEMS}) as stream:
                return number, [item["i"] async for item in stream], stream.end

        answers = await asyncio.gather(*(ask(number) for number in range(REQUESTS)))
        await _all_finished(workers, REQUESTS)
        metrics = [await worker.metrics() for worker in workers]
        state = await _queue_state(queue_client, endpoint)

    assert answers == [(n, list(range(ITEMS)), EndState.COMPLETE) for n in range(REQUESTS)]
    assert state == (0, 0)
    assert sum(m["dynamo_component_requests_total"] for m in metrics) == REQUESTS
    assert sum(m['dialback_outcomes_total{outcome="completed"}'] for m in metrics) == REQUESTS
    assert [m["dynamo_component_inflight_requests"] for m in metrics] == [0, 0]
    assert all(m["dynamo_component_requests_total"] > 0 for m in metrics), "both must work"
    ids = [event["request_id"] for worker in workers for event in worker.finished]
    assert len(ids) == len(set(ids)) == REQUESTS


async def _all_finished(workers: list[WorkerProcess], count: int) -> None:
    """Wait until the workers together have logged ``count`` finished requests."""
    async with asyncio.timeout(60):
        while sum(len(worker.finished) for worker in workers) < count:
            waits = [
                asyncio.create_task(worker.until(lambda _: True, len(worker.log) + 1))
                for worker in workers
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def test_a_worker_killed_before_its_first_item_is_replaced_by_the_other(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            worker_process("examples.flaky:generate", endpoint, nats_server.url, ack_wait=2)
        )
        await first.started()
        requester = await stack.enter_async_context(
            Requester(Settings.load(server=nats_server.url))
        )
        stream = requester.generate(str(endpoint), {"mode": "hang", "after": 0, "seconds": 600})
        async with stream:
            await first.metric_reaches("dynamo_component_inflight_requests", 1)
            second = await stack.enter_async_context(
                worker_process("examples.counter:generate", endpoint, nats_server.url, ack_wait=2)
            )
            await second.started()
            await first.kill()
            # The other engine takes {"mode": ...} for a request without "n": it fails, and says so.
            with pytest.raises(Exception, match="KeyError"):
                await anext(stream)
        finished = await second.outcome_of(stream.request_id)

    assert stream.interruptions == 1
    assert finished["delivery"] == 2
    assert finished["outcome"] == "engine_failed"
    assert await _queue_state(queue_client, endpoint) == (0, 0)


async def test_sigterm_drains_finishes_what_runs_and_takes_nothing_new(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with (
        worker_process("examples.counter:generate", endpoint, nats_server.url, slots=1) as worker,
        Requester(Settings.load(server=nats_server.url)) as requester,
    ):
        await worker.started()
        running = requester.generate(str(endpoint), {"n": 10, "delay": 0.1})
        queued = requester.generate(str(endpoint), {"n": 1}, timeout=600)
        async with running, queued:
            assert await anext(running) == {"i": 0}
            worker.terminate()
            await worker.until(lambda event: event["message"] == "draining")
            status = await worker.status("/health")
            assert [item["i"] async for item in running] == list(range(1, 10))
            assert await worker.exit_code() == 0
            assert await _queue_state(queue_client, endpoint) == (1, 0)

    assert running.end is EndState.COMPLETE
    assert status[0] == 503
    assert [event["outcome"] for event in worker.finished] == ["completed"]
    assert await _queue_state(queue_client, endpoint) == (0, 0), "leaving withdraws what is queued"


async def test_a_second_signal_ends_what_runs_and_the_caller_hears_it(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with (
        worker_process("examples.flaky:generate", endpoint, nats_server.url) as worker,
        Requester(Settings.load(server=nats_server.url)) as requester,
    ):
        await worker.started()
        async with requester.generate(str(endpoint), {"mode": "hang", "after": 1}) as stream:
            assert await anext(stream) == {"i": 0}
            worker.terminate()
            await worker.until(lambda event: event["message"] == "draining")
            worker.terminate()
            with pytest.raises(Exception, match="before generation completed, after 1 items"):
                await anext(stream)
        code = await worker.exit_code()

    assert code == 143
    assert [event["outcome"] for event in worker.finished] == ["interrupted"]
    assert stream.end is EndState.BROKEN


async def test_a_blocked_event_loop_keeps_its_lease(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with (
        worker_process("examples.flaky:generate", endpoint, nats_server.url, ack_wait=1) as worker,
        Requester(Settings.load(server=nats_server.url)) as requester,
    ):
        await worker.started()
        request = {"mode": "block", "after": 1, "seconds": 3}
        async with requester.generate(str(endpoint), request) as stream:
            assert [item async for item in stream] == [{"i": 0}, {"blocked": 1}]
        finished = await worker.outcome_of(stream.request_id)
        metrics = await worker.metrics()

    assert (finished["outcome"], finished["delivery"]) == ("completed", 1)
    assert metrics["dynamo_component_requests_total"] == 1
