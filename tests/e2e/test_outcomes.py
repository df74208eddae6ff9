"""Stop, kill, hang-up, refusal, a break in mid-stream: seen from both ends.

The worker is a process of its own; what it says is its log line and its counters.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest

from dialback import (
    EndState,
    EngineRefusedError,
    Requester,
    RequestTimeoutError,
    ResponseError,
    Settings,
)
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support.frames import request_payload
from support.scripted_requester import ScriptedRequester
from support.worker_process import WorkerProcess, worker_process

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

REQUESTS = "dynamo_component_requests_total"
CANCELLED = "dynamo_component_cancellation_total"
IN_FLIGHT = "dynamo_component_inflight_requests"


def errors(error_type: str) -> str:
    return f'dynamo_component_errors_total{{error_type="{error_type}"}}'


def outcomes(outcome: str) -> str:
    return f'dialback_outcomes_total{{outcome="{outcome}"}}'


@dataclass(frozen=True)
class Pair:
    """A worker process with the flaky engine, and a requester."""

    worker: WorkerProcess
    requester: Requester
    endpoint: str
    client: QueueClient

    async def settled(self, request_id: str) -> dict[str, Any]:
        """The worker's log line; afterwards nothing may be left of the request."""
        finished = await self.worker.outcome_of(request_id)
        stream = Endpoint.parse(self.endpoint).stream
        info = await self.client.api.stream_info(stream)
        pending = [
            (await self.client.api.consumer_info(stream, n))["num_ack_pending"] for n in Lane
        ]
        assert (info["state"]["messages"], sum(pending)) == (0, 0)
        return finished


@pytest.fixture
async def pair(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> AsyncGenerator[Pair]:
    async with (
        worker_process("examples.flaky:generate", endpoint, nats_server.url) as worker,
        Requester(Settings.load(server=nats_server.url)) as requester,
    ):
        await worker.started()
        yield Pair(worker, requester, str(endpoint), queue_client)


async def test_stop_flushes_and_ends_with_the_final(pair: Pair) -> None:
    async with pair.requester.generate(pair.endpoint, {"mode": "flood"}) as stream:
        items = [await anext(stream) for _ in range(100)]
        await stream.stop()
        rest = [item async for item in stream]
    finished = await pair.settled(stream.request_id)
    metrics = await pair.worker.metrics()

    assert items[:3] == [{"i": 0}, {"i": 1}, {"flood": 1}]
    assert stream.end is EndState.COMPLETE
    assert finished["outcome"] == "stopped"
    assert finished["items"] == len(items) + len(rest)
    assert metrics[outcomes("stopped")] == metrics[CANCELLED] == 1
    assert metrics[errors("publish_response")] == metrics[errors("publish_final")] == 0


async def test_an_engine_that_ignores_a_stop_is_closed(pair: Pair) -> None:
    async with pair.requester.generate(pair.endpoint, {"mode": "stubborn"}) as stream:
        await anext(stream)
        await stream.stop()
        rest = [item async for item in stream]
    finished = await pair.settled(stream.request_id)

    assert stream.end is EndState.COMPLETE
    assert (finished["outcome"], finished["items"]) == ("stopped", 1 + len(rest))


async def test_a_kill_ends_both_ends_at_once(pair: Pair) -> None:
    async with pair.requester.generate(pair.endpoint, {"mode": "hang", "after": 1}) as stream:
        assert await anext(stream) == {"i": 0}
        await stream.kill()
        assert [item async for item in stream] == []
    finished = await pair.settled(stream.request_id)
    metrics = await pair.worker.metrics()

    assert stream.end is EndState.CANCELLED
    assert finished["outcome"] == "killed"
    assert metrics[outcomes("killed")] == metrics[CANCELLED] == 1
    assert metrics[errors("publish_final")] == 1


async def test_leaving_the_block_early_kills(pair: Pair) -> None:
    async with pair.requester.generate(pair.endpoint, {"mode": "flood"}) as stream:
        await anext(stream)
    assert stream.end is EndState.CANCELLED
    assert (await pair.settled(stream.request_id))["outcome"] == "killed"


async def test_a_refusal_reaches_the_caller_as_an_error_prologue(pair: Pair) -> None:
    async with pair.requester.generate(pair.endpoint, {"mode": "refuse"}) as stream:
        with pytest.raises(EngineRefusedError, match="ValueError: this engine refuses"):
            await anext(stream)
    finished = await pair.settled(stream.request_id)
    metrics = await pair.worker.metrics()

    assert stream.end is EndState.BROKEN
    assert finished["outcome"] == "engine_refused"
    assert metrics[outcomes("engine_refused")] == metrics[errors("generate")] == 1


async def test_a_break_in_mid_stream_is_an_error_item_then_the_final(pair: Pair) -> None:
    async with pair.requester.generate(pair.endpoint, {"mode": "break", "after": 2}) as stream:
        assert [await anext(stream), await anext(stream)] == [{"i": 0}, {"i": 1}]
        with pytest.raises(ResponseError, match="RuntimeError: this engine broke") as caught:
            await anext(stream)
        assert [item async for item in stream] == []
    finished = await pair.settled(stream.request_id)
    metrics = await pair.worker.metrics()

    assert (caught.value.kind, caught.value.error_class) == ("Backend Unknown", "Internal")
    assert stream.end is EndState.COMPLETE
    assert (finished["outcome"], finished["items"]) == ("engine_failed", 2)
    assert metrics[outcomes("engine_failed")] == 1
    assert sum(v for k, v in metrics.items() if k.startswith("dynamo_component_errors")) == 0


async def test_an_item_that_cannot_be_serialised_is_an_error_item(pair: Pair) -> None:
    request = {"mode": "unserialisable", "after": 0}
    async with pair.requester.generate(pair.endpoint, request) as stream:
        with pytest.raises(ResponseError, match="cannot write a value as json"):
            await anext(stream)
    assert (await pair.settled(stream.request_id))["outcome"] == "engine_failed"
    assert (await pair.worker.metrics())[errors("serialization")] == 1


@pytest.mark.parametrize("leave", ["reset", "close"])
async def test_a_caller_that_hangs_up_is_client_gone_and_no_error_in_the_log(
    pair: Pair, leave: str
) -> None:
    """A requester of our own never only hangs up; a scripted one does."""
    where = Endpoint.parse(pair.endpoint)
    async with ScriptedRequester() as scripted:
        payload = request_payload(scripted.address, {"mode": "stubborn"})
        await pair.client.publisher.publish(
            where.request_subject(Lane.NORMAL, "req-1"), payload, {}
        )
        call = await scripted.connection()
        for _ in range(3):
            await call.frame()
        if leave == "reset":
            call.reset()
        else:
            await call.close()
        finished = await pair.settled("req-1")
    metrics = await pair.worker.metrics()

    assert finished["outcome"] == "client_gone"
    failed = 'dialback_publish_failures_total{cause="client_disconnect",stage="response"}'
    assert metrics[failed] == metrics[errors("publish_response")] == metrics[CANCELLED] == 1
    assert not [event for event in pair.worker.log if event["level"] in {"WARNING", "ERROR"}]


async def test_the_worker_goes_on_after_all_of_it(pair: Pair) -> None:
    for mode in ("refuse", "break", "unserialisable"):
        async with pair.requester.generate(pair.endpoint, {"mode": mode}) as stream:
            with pytest.raises((EngineRefusedError, ResponseError)):
                [item async for item in stream]
        await pair.settled(stream.request_id)
    async with pair.requester.generate(pair.endpoint, {"mode": "", "after": 3}) as stream:
        assert len([item async for item in stream]) == 3
    await pair.settled(stream.request_id)
    metrics = await pair.worker.metrics()

    assert (metrics[REQUESTS], metrics[IN_FLIGHT]) == (4, 0)
    assert sum(v for k, v in metrics.items() if k.startswith("dialback_outcomes_total")) == 4


async def test_no_worker_is_a_timeout_that_says_so_and_the_request_is_withdrawn(
    pair: Pair,
) -> None:
    await pair.worker.kill()
    async with pair.requester.generate(pair.endpoint, {"mode": ""}, timeout=0.2) as stream:
        with pytest.raises(RequestTimeoutError, match="no worker dialled back"):
            await anext(stream)
    info = await pair.client.api.stream_info(Endpoint.parse(pair.endpoint).stream)
    assert info["state"]["messages"] == 0
