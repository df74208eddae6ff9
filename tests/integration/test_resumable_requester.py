"""A caller's stream that survives its workers: the requester, a real server, scripted workers."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from dialback import (
    ConfigError,
    DeadlineExceededError,
    EndState,
    Interruption,
    Requester,
    ResponseStream,
    Settings,
    StreamInterrupted,
)
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, QueueSettings, Topology
from dialback.transport.address import parse_address
from dialback.transport.two_part import TwoPartMessage, decode
from support.resumable_worker import resuming, said
from support.scripted_requester import CallHome
from support.scripted_worker import FINAL, PROLOGUE, SENTINEL, dialling, handshake, item

pytestmark = pytest.mark.integration


class Caller:
    """A requester, its endpoint's queue, and workers that a test scripts."""

    def __init__(self, requester: Requester, queue: Endpoint, client: QueueClient) -> None:
        self._requester = requester
        self._queue = queue
        self._client = client
        self.interruptions: list[Interruption] = []

    def ask(self, **how: Any) -> ResponseStream:
        how = {"on_interruption": self.interruptions.append} | how
        return self._requester.generate(str(self._queue), {}, **how)

    async def close(self) -> None:
        await self._requester.close()

    async def queued(self) -> int:
        info = await self._client.api.stream_info(self._queue.stream)
        return int(info["state"]["messages"])

    async def info(self) -> dict[str, Any]:
        """The ``info`` document of the request that is queued."""
        message = await self._client.api.get_message(self._queue.stream)
        control = orjson.loads(decode(message.payload).header)
        document: dict[str, Any] = orjson.loads(control["connection_info"]["info"])
        return document

    @asynccontextmanager
    async def worker(self, delivery: int = 1) -> AsyncGenerator[tuple[CallHome, TwoPartMessage]]:
        info = await self.info()
        address = parse_address(info["address"])
        async with resuming(address, info["subject"], delivery=delivery) as worker:
            yield worker


@pytest.fixture
async def caller(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> AsyncGenerator[Caller]:
    await Topology(queue_client.api, endpoint, QueueSettings()).ensure()
    async with Requester(Settings.load(server=nats_server.url)) as requester:
        yield Caller(requester, endpoint, queue_client)


@pytest.mark.parametrize(
    ("resumable", "added"), [(True, {"resumable": 1, "reuse": 1}), (False, {})]
)
async def test_a_request_announces_it_unless_told_otherwise(
    caller: Caller, resumable: bool, added: dict[str, int]
) -> None:
    async with caller.ask(resumable=resumable, request_id="r"):
        info = await caller.info()
    assert {name: info[name] for name in list(info)[4:]} == added
    assert list(info)[:4] == ["address", "subject", "context", "stream_type"]


async def test_the_callers_loop_goes_on_over_three_workers(caller: Caller) -> None:
    async with caller.ask() as stream:
        assert (stream.delivery, stream.resumed, stream.interruptions) == (0, 0, 0)
        async with caller.worker(1) as (worker, _):
            await worker.send(PROLOGUE + item(0) + item(1))
            assert [await anext(stream), await anext(stream)] == [0, 1]
            assert stream.delivery == 1
            worker.reset()
        async with caller.worker(2) as (worker, answer):
            assert said(answer) == (2, 0)
            await worker.send(PROLOGUE + item(2) + SENTINEL)
            assert await worker.frame() is None
        async with caller.worker(3) as (worker, answer):
            assert said(answer) == (3, 0)
            await worker.send(PROLOGUE + item(3) + FINAL + SENTINEL)
            assert [number async for number in stream] == [2, 3]
            assert await worker.frame() is None
    assert (stream.delivery, stream.resumed, stream.interruptions) == (3, 2, 2)
    assert (stream.items, stream.end) == (4, EndState.COMPLETE)
    assert [one.handed_over for one in caller.interruptions] == [False, True]


@pytest.mark.parametrize("keep_history", [True, 1000])
async def test_the_items_are_kept_for_the_next_worker_if_asked_for(
    caller: Caller, keep_history: bool | int
) -> None:
    async with caller.ask(keep_history=keep_history) as stream:
        async with caller.worker(1) as (worker, answer):
            assert answer.data == b"[]"
            await worker.send(PROLOGUE + item({"i": 0}) + item("b") + SENTINEL)
            assert await worker.frame() is None
        async with caller.worker(2) as (worker, answer):
            assert answer.data == b'[{"i":0},"b"]'
            await worker.send(PROLOGUE + FINAL)
            assert [value async for value in stream] == [{"i": 0}, "b"]


async def test_nobody_within_resume_timeout_is_an_error_and_the_request_is_withdrawn(
    caller: Caller,
) -> None:
    async with caller.ask(resume_timeout=0.05) as stream:
        async with caller.worker(1) as (worker, answer):
            assert answer.data == b""
            await worker.send(PROLOGUE + item(0) + SENTINEL)
            assert await worker.frame() is None
        assert await anext(stream) == 0
        with pytest.raises(StreamInterrupted, match="no other worker came") as caught:
            await anext(stream)
        assert caught.value.items == 1
    assert await caller.queued() == 0


async def test_the_deadline_bounds_the_wait_for_the_next_worker(caller: Caller) -> None:
    async with caller.ask(deadline=0.5) as stream:
        async with caller.worker(1) as (worker, _):
            await worker.send(PROLOGUE + item(0) + SENTINEL)
            assert await worker.frame() is None
        assert await anext(stream) == 0
        with pytest.raises(DeadlineExceededError):
            await anext(stream)
    assert await caller.queued() == 0


async def test_a_kill_while_nobody_is_connected_withdraws_the_request(caller: Caller) -> None:
    async with caller.ask() as stream:
        async with caller.worker(1) as (worker, _):
            await worker.send(PROLOGUE + item(0) + SENTINEL)
            assert await worker.frame() is None
        assert await caller.queued() == 1
        await stream.kill()
        assert await caller.queued() == 0
        assert [value async for value in stream] == [0]
    assert stream.end is EndState.CANCELLED


async def test_a_stop_while_nobody_is_connected_ends_the_stream_and_withdraws_the_request(
    caller: Caller,
) -> None:
    async with caller.ask() as stream:
        async with caller.worker(1) as (worker, _):
            await worker.send(PROLOGUE + item(0) + SENTINEL)
            assert await worker.frame() is None
        assert await caller.queued() == 1
        await stream.stop()
        assert stream.end is EndState.CANCELLED
        assert await caller.queued() == 0
        assert [value async for value in stream] == [0]


async def test_a_stop_before_the_first_dial_keeps_the_request(caller: Caller) -> None:
    async with caller.ask() as stream:
        await stream.stop()
        assert (stream.end, await caller.queued()) == (None, 1)
        async with caller.worker(1) as (worker, _):
            assert await worker.frame() == TwoPartMessage(b'"stop"')
            await worker.send(PROLOGUE + FINAL)
            assert [value async for value in stream] == []


async def test_a_requester_closed_while_nobody_is_connected_interrupts_and_withdraws(
    caller: Caller,
) -> None:
    async with caller.ask() as stream:
        async with caller.worker(1) as (worker, _):
            await worker.send(PROLOGUE + item(0) + item(1) + SENTINEL)
            assert await worker.frame() is None
        await caller.close()
        assert await caller.queued() == 0
        assert [await anext(stream), await anext(stream)] == [0, 1]
        with pytest.raises(StreamInterrupted, match="2 items: the requester was closed"):
            await anext(stream)


async def test_without_resumption_a_worker_that_is_lost_interrupts_the_stream(
    caller: Caller,
) -> None:
    async with caller.ask(resumable=False) as stream:
        info = await caller.info()
        opening = handshake(info["subject"]) + PROLOGUE + item(0)
        async with dialling(parse_address(info["address"]), opening) as worker:
            assert await anext(stream) == 0
            worker.reset()
            with pytest.raises(StreamInterrupted):
                await anext(stream)
    assert stream.delivery == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"resume_timeout": 0},
        {"resume_timeout": float("nan")},
        {"keep_history": -1},
        {"keep_history": 64 * 1024 * 1024 + 1},
    ],
)
async def test_wrong_arguments_are_refused_before_anything_is_sent(
    caller: Caller, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        caller.ask(**wrong)
    assert await caller.queued() == 0
