"""A real Dynamo worker serves our requester, out of a real work queue.

Our requester publishes to the queue as ever; the lane's consumer pushes to the core NATS
subject that the worker subscribes (`support.dynamo.feed`). Both ends are looked at: what the
caller saw, what the worker's engine saw, and that the message is gone.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from dialback import (
    EndState,
    EngineRefusedError,
    Requester,
    ResponseError,
    Settings,
    StreamInterrupted,
)
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from dialback.stream import ResponseStream
from interop.bodies import BODIES
from support.dynamo import Dynamo, DynamoWorker, feed, freeze
from support.eventually import eventually
from support.queue_rig import lane_state, nothing_left, provision, stored
from support.worker_process import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

LATE = 12.0  # seconds: longer than Dynamo's request timeout of 10
CUT = ("killed", "stopped")  # a reset is read as a kill; a write that fails first, as a stop
LIMIT = 60.0  # seconds for anything a test waits for


@dataclass(frozen=True, slots=True)
class Pair:
    """Our requester and a Dynamo worker.

    Attributes:
        subject: The core NATS subject that the worker subscribes.
    """

    requester: Requester
    worker: DynamoWorker
    endpoint: Endpoint
    operator: QueueClient
    subject: str

    def ask(self, request: dict[str, Any], **how: Any) -> ResponseStream:
        """A request's stream, to be entered."""
        return self.requester.generate(str(self.endpoint), request, timeout=LIMIT, **how)

    async def settled(self, stream: ResponseStream, *saw: str) -> None:
        """Wait for the worker's end of a request, and for the message to be gone."""
        await self.worker.saw(stream.request_id, *saw)
        assert self.worker.runs(stream.request_id) == 1
        await nothing_left(self.operator, self.endpoint)

    async def items_of(self, request: dict[str, Any], **how: Any) -> list[Any]:
        """All items of a request that ends well."""
        async with self.ask(request, **how) as stream:
            items = [item async for item in stream]
        assert stream.end is EndState.COMPLETE
        await self.settled(stream, "ended")
        return items


@pytest_asyncio.fixture(loop_scope="session")
async def pair(
    dynamo: Dynamo, dynamo_worker: DynamoWorker, operator: QueueClient, endpoint: Endpoint
) -> AsyncGenerator[Pair]:
    await provision(operator, endpoint)
    subject = await dynamo_worker.serve(endpoint)
    await feed(operator, endpoint, subject)
    async with Requester(Settings.load(server=dynamo.server, codec=dynamo.codec)) as requester:
        yield Pair(requester, dynamo_worker, endpoint, operator, subject)


def counted(items: list[Any]) -> list[Any]:
    """What the engine yields as items of these numbers: none missing, none twice."""
    return [{"i": i} for i in range(len(items))]


@pytest.mark.case("normal")
async def test_items_arrive_as_the_engine_yielded_them(pair: Pair, dynamo: Dynamo) -> None:
    assert await pair.items_of({"n": 5}) == [{"i": i} for i in range(5)]
    announced = pair.worker.records[str(pair.endpoint)].get("request_plane_codec")
    assert announced == (None if dynamo.release == "1.3.1" else dynamo.codec)


@pytest.mark.case("empty stream")
async def test_a_stream_without_items_ends_cleanly(pair: Pair) -> None:
    assert await pair.items_of({"n": 0}) == []


@pytest.mark.case("1 MB items")
async def test_items_of_a_megabyte_arrive(pair: Pair) -> None:
    items = await pair.items_of({"n": 8, "size": 2**20})
    assert items == [{"i": i, "text": "x" * 2**20} for i in range(8)]


@pytest.mark.case("10,000 small items")
async def test_ten_thousand_small_items_arrive_in_order(pair: Pair) -> None:
    assert await pair.items_of({"n": 10_000}) == [{"i": i} for i in range(10_000)]


@pytest.mark.case("unicode and nested bodies")
async def test_bodies_go_both_ways_unchanged(pair: Pair) -> None:
    assert await pair.items_of({"values": BODIES}) == BODIES


@pytest.mark.case("metadata")
async def test_the_engine_gets_the_requesters_metadata_and_id(pair: Pair) -> None:
    metadata = {"tenant": "grüße", "b": "2", "a": ""}
    request_id = f"id/{pair.endpoint.endpoint}"
    items = await pair.items_of({"tell": True}, metadata=metadata, request_id=request_id)
    assert items == [{"id": request_id, "metadata": metadata}]


@pytest.mark.case("engine refuses")
async def test_a_refusal_is_raised_to_the_caller(pair: Pair) -> None:
    async with pair.ask({"refuse": "not today"}) as stream:
        with pytest.raises(EngineRefusedError, match="ValueError: not today"):
            await anext(stream)
    assert stream.end is EndState.BROKEN
    assert pair.worker.runs(stream.request_id) == 0
    await nothing_left(pair.operator, pair.endpoint)


@pytest.mark.case("engine breaks in mid-stream")
async def test_an_engine_that_breaks_is_an_error_after_its_items(pair: Pair) -> None:
    async with pair.ask({"n": 3, "then": "break"}) as stream:
        items = [await anext(stream) for _ in range(3)]
        with pytest.raises(ResponseError, match="RuntimeError: this engine broke") as caught:
            await anext(stream)
        assert [item async for item in stream] == []
    assert items == [{"i": i} for i in range(3)]
    assert caught.value.kind == "Backend Unknown"
    assert stream.end is EndState.COMPLETE, "the final says that this was all"
    await pair.settled(stream, "ended")


@pytest.mark.case("stop in mid-stream")
async def test_a_stop_reaches_the_engine_and_ends_the_stream(pair: Pair) -> None:
    items: list[Any] = []
    async with pair.ask({"then": "flow"}) as stream:
        async for item in stream:
            items.append(item)
            if len(items) == 5:
                await stream.stop()
    assert items == counted(items)
    assert len(items) >= 5
    assert stream.end is EndState.CANCELLED
    await pair.settled(stream, "stopped")


@pytest.mark.case("kill in mid-stream")
async def test_leaving_the_block_kills_the_request(pair: Pair) -> None:
    items: list[Any] = []
    async with pair.ask({"then": "flow"}) as stream:
        async for item in stream:
            items.append(item)
            if len(items) == 5:
                break
    assert items == counted(items)
    assert stream.end is EndState.CANCELLED
    await pair.settled(stream, "killed")


@pytest.mark.case("stop before the first item")
async def test_a_stop_before_the_first_item_ends_the_stream(pair: Pair) -> None:
    async with pair.ask({"then": "wait"}) as stream:
        await pair.worker.saw(stream.request_id, "started")
        await stream.stop()
        assert [item async for item in stream] == []
    assert stream.end is EndState.CANCELLED
    await pair.settled(stream, "stopped")


@pytest.mark.case("client process killed")
async def test_a_requester_that_dies_ends_the_engine(pair: Pair, dynamo: Dynamo) -> None:
    submit = ("submit", str(pair.endpoint), '{"then": "flow", "tell": true}')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dialback", *submit, "-s", dynamo.server, "--codec", dynamo.codec),
        cwd=ROOT,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT):
        told = await process.stdout.readline()
        process.kill()
        await process.communicate()
    request_id = told.partition(b'"id":')[2].split(b'"')[1].decode()
    await pair.worker.saw(request_id, *CUT)
    await nothing_left(pair.operator, pair.endpoint)


@pytest.mark.case("50 concurrent streams")
async def test_fifty_streams_are_open_at_the_same_time(pair: Pair) -> None:
    request = {"meet": 50, "place": str(pair.endpoint), "n": 20}
    answers = await asyncio.gather(*(pair.items_of(request | {"values": [k]}) for k in range(50)))
    assert answers == [[k, *({"i": i} for i in range(20))] for k in range(50)]


@pytest.mark.case("worker process killed in mid-stream")
async def test_a_worker_that_dies_interrupts_the_stream(
    dynamo: Dynamo, operator: QueueClient, endpoint: Endpoint
) -> None:
    await provision(operator, endpoint)
    async with (
        dynamo.worker() as doomed,
        Requester(Settings.load(server=dynamo.server, codec=dynamo.codec)) as requester,
    ):
        await feed(operator, endpoint, await doomed.serve(endpoint))
        async with requester.generate(str(endpoint), {"then": "flow"}) as stream:
            items = [await anext(stream) for _ in range(5)]
            await doomed.peer.kill()
            with pytest.raises(StreamInterrupted):
                await _read_on(stream, items)
    assert items == counted(items)
    assert stream.end is EndState.BROKEN
    await nothing_left(operator, endpoint)


async def _read_on(stream: ResponseStream, items: list[Any]) -> None:
    async for item in stream:
        items.append(item)  # noqa: PERF401 -- kept when the stream breaks


@pytest.mark.case("redelivery before the handshake")
async def test_a_worker_killed_before_it_dials_costs_the_caller_nothing(
    dynamo: Dynamo, operator: QueueClient, endpoint: Endpoint
) -> None:
    async def pushed() -> int:
        return int((await lane_state(operator, endpoint))["num_ack_pending"])

    await provision(operator, endpoint)
    async with (
        dynamo.worker() as heir,
        Requester(Settings.load(server=dynamo.server, codec=dynamo.codec)) as requester,
    ):
        async with dynamo.worker() as doomed:
            await feed(operator, endpoint, await doomed.serve(endpoint))
            await freeze(doomed.peer.process)
            async with requester.generate(str(endpoint), {"n": 5}) as stream:
                await eventually(pushed)
                await doomed.peer.kill()
                await feed(operator, endpoint, await heir.serve(endpoint))
                items = [item async for item in stream]
    assert items == [{"i": i} for i in range(5)]
    assert stream.end is EndState.COMPLETE
    assert heir.runs(stream.request_id) == 1
    await nothing_left(operator, endpoint)


@pytest.mark.case("redelivery after the handshake")
async def test_a_second_delivery_in_mid_stream_changes_nothing(
    dynamo: Dynamo, dynamo_worker: DynamoWorker, operator: QueueClient, endpoint: Endpoint
) -> None:
    await provision(operator, endpoint)
    subject = await dynamo_worker.serve(endpoint)
    items: list[Any] = []
    async with (
        Requester(Settings.load(server=dynamo.server, codec=dynamo.codec)) as requester,
        requester.generate(str(endpoint), {"then": "flow"}, timeout=LIMIT) as stream,
    ):
        request = await operator.api.get_message(endpoint.stream, sequence=1)
        await feed(operator, endpoint, subject)  # only now somebody takes it
        async for item in stream:
            items.append(item)
            if len(items) == 5:
                acknowledged = operator.connection.request(subject, request.payload, timeout=LIMIT)
                await acknowledged
                await dynamo_worker.saw(stream.request_id, *CUT)  # the second one was refused
                await stream.stop()
    assert items == counted(items)
    assert stream.end is EndState.CANCELLED
    await dynamo_worker.saw(stream.request_id, *CUT, count=2)
    assert dynamo_worker.runs(stream.request_id) == 2
    await nothing_left(operator, endpoint)


@pytest.mark.case("a worker that comes late")
async def test_a_worker_that_comes_late_is_pushed_what_waits(
    every_dynamo: dict[tuple[str, str], Dynamo],
    operator: QueueClient,
    nats_server: EmbeddedServer,
) -> None:
    answers: list[asyncio.Task[list[Any]]] = []
    async with AsyncExitStack() as stack:
        requester = await stack.enter_async_context(
            Requester(Settings.load(server=nats_server.url))
        )
        for number, dynamo in enumerate(every_dynamo.values()):
            endpoint = Endpoint("interop", "backend", f"waits{number}")
            await provision(operator, endpoint)
            request = {"values": [dynamo.release, dynamo.codec]}
            ask = _items(requester, endpoint, request, dynamo.codec)
            answers.append(asyncio.create_task(ask))
            await eventually(partial(stored, operator, endpoint.stream))
        await asyncio.sleep(LATE)  # the case itself
        for number, dynamo in enumerate(every_dynamo.values()):
            endpoint = Endpoint("interop", "backend", f"waits{number}")
            worker = await stack.enter_async_context(dynamo.worker())
            await feed(operator, endpoint, await worker.serve(endpoint))
            assert await answers[number] == [dynamo.release, dynamo.codec]
            await nothing_left(operator, endpoint)


async def _items(
    requester: Requester, endpoint: Endpoint, request: dict[str, Any], codec: str
) -> list[Any]:
    async with requester.generate(str(endpoint), request, codec=codec) as stream:
        return [item async for item in stream]
