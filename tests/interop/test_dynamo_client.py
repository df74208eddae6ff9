"""A real Dynamo client gets its streams from our worker, through a real work queue.

The client publishes to the subject that a discovery record names; the queue captures it, and
the server's PubAck is the acknowledgement. Both ends are looked at: what the client's caller
saw, our worker's outcome, and that the message is gone.
"""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from interop.bodies import BODIES
from interop.our_side import ENGINE, OurWorker, our_worker
from interop.peers import engine
from support.dynamo import Call, Caller, Dynamo, DynamoClient, freeze
from support.eventually import eventually
from support.queue_rig import lane_state, nothing_left, provision, stored, take
from support.worker_process import worker_process

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

INTERRUPTED = "Stream ended before generation completed"
LATE = 12.0  # seconds: longer than Dynamo's request timeout of 10
LEASE = 2.0  # seconds, where a worker has to lose one


@dataclass(frozen=True, slots=True)
class Pair:
    """A Dynamo client and our worker."""

    client: DynamoClient
    worker: OurWorker
    endpoint: Endpoint
    operator: QueueClient

    async def call(self, request: dict[str, Any], **how: Any) -> Call:
        """Send a request."""
        return await self.client.call(self.endpoint, request, **how)

    async def ask(self, request: dict[str, Any], outcome: str, **how: Any) -> Caller:
        """Send a request, wait for both ends."""
        call = await self.call(request, **how)
        caller = await call.ended()
        await self.settled(call, outcome)
        return caller

    async def settled(self, call: Call, *outcomes: str) -> dict[str, Any]:
        """Wait for our worker's end of a request: one of the outcomes, and the message gone."""
        finished = await self.worker.outcome_of(call.request_id)
        assert finished["outcome"] in outcomes, finished
        await nothing_left(self.operator, self.endpoint)
        assert call.ends <= 1
        return finished


@pytest_asyncio.fixture(loop_scope="session")
async def pair(
    dynamo: Dynamo, dynamo_client: DynamoClient, operator: QueueClient, endpoint: Endpoint
) -> AsyncGenerator[Pair]:
    async with (
        dynamo.discovered(endpoint),
        our_worker(dynamo.server, endpoint, slots=50) as worker,
    ):
        yield Pair(dynamo_client, worker, endpoint, operator)
    assert worker.loud == []


def counted(items: list[Any]) -> list[Any]:
    """What the engine yields as items of these numbers: none missing, none twice."""
    return [{"i": i} for i in range(len(items))]


@pytest.mark.case("normal")
async def test_items_arrive_as_the_engine_yielded_them(pair: Pair) -> None:
    caller = await pair.ask({"n": 5}, "completed")
    assert caller == Caller([{"i": i} for i in range(5)], None)


@pytest.mark.case("empty stream")
async def test_a_stream_without_items_ends_cleanly(pair: Pair) -> None:
    assert await pair.ask({"n": 0}, "completed") == Caller([], None)


@pytest.mark.case("1 MB items")
async def test_items_of_a_megabyte_arrive(pair: Pair) -> None:
    caller = await pair.ask({"n": 8, "size": 2**20}, "completed")
    assert caller == Caller([{"i": i, "text": "x" * 2**20} for i in range(8)], None)


@pytest.mark.case("10,000 small items")
async def test_ten_thousand_small_items_arrive_in_order(pair: Pair) -> None:
    caller = await pair.ask({"n": 10_000}, "completed")
    assert caller == Caller([{"i": i} for i in range(10_000)], None)


@pytest.mark.case("unicode and nested bodies")
async def test_bodies_go_both_ways_unchanged(pair: Pair) -> None:
    assert await pair.ask({"values": BODIES}, "completed") == Caller(BODIES, None)


@pytest.mark.case("metadata")
async def test_the_engine_gets_the_clients_metadata_and_id(pair: Pair) -> None:
    metadata = {"tenant": "grüße", "b": "2", "a": ""}
    call = await pair.call({"tell": True}, metadata=metadata)
    caller = await call.ended()
    await pair.settled(call, "completed")
    assert caller == Caller([{"id": call.request_id, "metadata": metadata}], None)


@pytest.mark.case("engine refuses")
async def test_a_refusal_is_the_callers_exception(pair: Pair) -> None:
    caller = await pair.ask({"refuse": "not today"}, "engine_refused")
    assert caller.items == []
    assert caller.error is not None
    assert "not today" in caller.error


@pytest.mark.case("engine breaks in mid-stream")
async def test_an_engine_that_breaks_is_an_error_after_its_items(pair: Pair) -> None:
    caller = await pair.ask({"n": 3, "then": "break"}, "engine_failed")
    assert caller.items == counted(caller.items)
    assert len(caller.items) == 3
    assert caller.error is not None
    assert "RuntimeError: this engine broke" in caller.error


ERRORS = [
    *({"refuse": "not today", "error": error} for error in ("ValueError", "RuntimeError")),
    *({"n": 2, "then": "break", "error": error} for error in engine.ERRORS),
]


@pytest.mark.case("errors read as from a Dynamo worker")
@pytest.mark.parametrize("request_", ERRORS, ids=lambda r: "-".join(map(str, r.values())))
async def test_the_caller_reads_what_a_dynamo_worker_would_have_said(
    pair: Pair, dynamo: Dynamo, their_subject: str, request_: dict[str, Any]
) -> None:
    theirs = Endpoint("interop", "theirs", pair.endpoint.endpoint)
    async with dynamo.discovered(theirs, their_subject):
        expected = await (await pair.client.call(theirs, request_)).ended()
    call = await pair.call(request_)
    assert await call.ended() == expected
    await nothing_left(pair.operator, pair.endpoint)


@pytest.mark.case("stop in mid-stream")
async def test_a_stop_ends_the_engine_and_what_it_yielded_arrives(pair: Pair) -> None:
    call = await pair.call({"then": "flow"}, stop_at=5)
    caller = await call.ended()
    finished = await pair.settled(call, "stopped")
    assert caller == Caller(counted(caller.items), None)
    assert len(caller.items) == finished["items"] >= 5


@pytest.mark.case("kill in mid-stream")
async def test_a_dropped_stream_kills_the_request(pair: Pair) -> None:
    call = await pair.call({"then": "flow"}, drop_at=5)
    caller = await call.ended()
    # It sends a kill and closes with items unread: the reset may come before the kill is read.
    await pair.settled(call, "killed", "client_gone")
    assert caller == Caller(counted(caller.items), None)
    assert len(caller.items) == 5


@pytest.mark.case("stop before the first item")
async def test_a_stop_before_the_first_item_ends_the_stream(pair: Pair) -> None:
    assert await pair.ask({"then": "wait"}, "stopped", stop_at=0) == Caller([], None)


@pytest.mark.case("client process killed")
async def test_a_client_that_dies_is_gone_and_nothing_more(pair: Pair, dynamo: Dynamo) -> None:
    async with dynamo.client() as doomed:
        call = await doomed.call(pair.endpoint, {"then": "flow"}, tell_at=5)
        await call.reached()
        await doomed.peer.kill()
    await pair.settled(call, "client_gone")


@pytest.mark.case("50 concurrent streams")
async def test_fifty_streams_are_open_at_the_same_time(pair: Pair) -> None:
    request = {"meet": 50, "place": str(pair.endpoint), "n": 20}
    calls = [await pair.call(request | {"values": [k]}) for k in range(50)]
    callers = await asyncio.gather(*(call.ended() for call in calls))
    rest = [{"i": i} for i in range(20)]
    assert callers == [Caller([k, *rest], None) for k in range(50)]
    for call in calls:
        await pair.settled(call, "completed")


@pytest.mark.case("worker process killed in mid-stream")
async def test_a_worker_that_dies_ends_the_stream_and_the_next_one_stays_quiet(
    dynamo: Dynamo, dynamo_client: DynamoClient, operator: QueueClient, endpoint: Endpoint
) -> None:
    async with dynamo.discovered(endpoint):
        async with worker_process(ENGINE, endpoint, dynamo.server, ack_wait=LEASE) as doomed:
            await doomed.started()
            call = await dynamo_client.call(endpoint, {"then": "flow"}, tell_at=5)
            await call.reached()
            await doomed.kill()
        caller = await call.ended()
        async with our_worker(dynamo.server, endpoint, ack_wait=LEASE) as heir:
            finished = await heir.outcome_of(call.request_id)
            await nothing_left(operator, endpoint)
    assert caller.items == counted(caller.items)
    assert len(caller.items) >= 5
    assert caller.error is not None
    assert INTERRUPTED in caller.error
    assert call.ends == 1
    assert (finished["outcome"], finished["delivery"]) == ("client_gone", 2)
    assert heir.loud == []


@pytest.mark.case("redelivery before the handshake")
async def test_a_worker_killed_before_it_dials_costs_the_caller_nothing(
    dynamo: Dynamo, dynamo_client: DynamoClient, operator: QueueClient, endpoint: Endpoint
) -> None:
    async def waiting() -> int:
        return int((await lane_state(operator, endpoint))["num_waiting"])

    async def taken() -> int:
        return int((await lane_state(operator, endpoint))["num_ack_pending"])

    async with dynamo.discovered(endpoint):
        async with worker_process(ENGINE, endpoint, dynamo.server, ack_wait=LEASE) as doomed:
            await doomed.started()
            await eventually(waiting)
            await freeze(doomed.process)
            call = await dynamo_client.call(endpoint, {"n": 5})
            await eventually(taken)
            await doomed.kill()
        async with our_worker(dynamo.server, endpoint, ack_wait=LEASE) as heir:
            caller = await call.ended()
            finished = await heir.outcome_of(call.request_id)
            await nothing_left(operator, endpoint)
    assert caller == Caller([{"i": i} for i in range(5)], None)
    assert (finished["outcome"], finished["delivery"]) == ("completed", 2)
    assert heir.loud == []


@pytest.mark.case("redelivery before the handshake")
async def test_a_message_handed_back_is_served_by_the_next_worker(
    dynamo: Dynamo, dynamo_client: DynamoClient, operator: QueueClient, endpoint: Endpoint
) -> None:
    await provision(operator, endpoint)
    async with dynamo.discovered(endpoint):
        call = await dynamo_client.call(endpoint, {"n": 5})
        message, _ = await take(operator, endpoint)
        await message.nak()
        async with our_worker(dynamo.server, endpoint) as heir:
            caller = await call.ended()
            finished = await heir.outcome_of(call.request_id)
            await nothing_left(operator, endpoint)
    assert caller == Caller([{"i": i} for i in range(5)], None)
    assert (finished["outcome"], finished["delivery"]) == ("completed", 2)
    assert heir.loud == []


@pytest.mark.case("redelivery after the handshake")
async def test_a_second_worker_on_a_spent_subject_ends_quietly(
    dynamo: Dynamo, dynamo_client: DynamoClient, operator: QueueClient, endpoint: Endpoint
) -> None:
    async with dynamo.discovered(endpoint):
        async with worker_process(  # with one slot it asks for nothing more
            ENGINE, endpoint, dynamo.server, ack_wait=LEASE, slots=1
        ) as frozen:
            await frozen.started()
            call = await dynamo_client.call(endpoint, {"then": "flow"}, tell_at=5)
            await call.reached()
            await freeze(frozen.process)  # alive, but its lease runs out
            async with our_worker(dynamo.server, endpoint, ack_wait=LEASE) as second:
                finished = await second.outcome_of(call.request_id)
                assert call.ends == 0, "the first worker's stream is still open"
                frozen.process.send_signal(signal.SIGCONT)
                caller = await call.ended()
                await frozen.until(lambda event: event["message"] == "delivery ended")
                await nothing_left(operator, endpoint)
    assert (finished["outcome"], finished["delivery"]) == ("client_gone", 2)
    assert second.loud == []
    assert [e["end"] for e in frozen.log if e["message"] == "delivery ended"] == ["superseded"]
    assert frozen.finished == []
    assert caller.items == counted(caller.items)
    assert caller.error is not None
    assert INTERRUPTED in caller.error
    assert call.ends == 1


@pytest.mark.case("a worker that comes late")
async def test_a_worker_that_comes_after_dynamos_request_timeout_still_serves(
    every_dynamo: dict[tuple[str, str], Dynamo],
    operator: QueueClient,
    nats_server: EmbeddedServer,
) -> None:
    endpoint = Endpoint("interop", "backend", "late")
    await provision(operator, endpoint)
    async with AsyncExitStack() as stack:
        calls: list[Call] = []
        for dynamo in every_dynamo.values():
            await stack.enter_async_context(dynamo.discovered(endpoint))
            client = await stack.enter_async_context(dynamo.client())
            request = {"values": [dynamo.release, dynamo.codec]}
            calls.append(await client.call(endpoint, request))
        await eventually(lambda: stored(operator, endpoint.stream), lambda n: n == len(calls))
        await asyncio.sleep(LATE)  # the case itself
        worker = await stack.enter_async_context(our_worker(nats_server.url, endpoint))
        callers = await asyncio.gather(*(call.ended() for call in calls))
        for call in calls:
            outcomes = await worker.said("request finished", request_id=call.request_id)
            assert outcomes["outcome"] == "completed"
        await nothing_left(operator, endpoint)
    assert callers == [Caller(list(combination), None) for combination in every_dynamo]
    assert worker.loud == []
