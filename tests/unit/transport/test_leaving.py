"""A kill arrives, whatever its worker is writing: who kills reads on until the worker closes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from dialback.errors import ResponseError, StreamInterrupted
from dialback.transport.dynamo_errors import error_item_of, interrupted_error
from dialback.transport.items import encode_error_item
from dialback.transport.line import Resumable
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import PayloadCodec
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import EndState
from dialback.transport.two_part import TwoPartMessage, encode
from support.eventually import eventually
from support.listening import address_of, has_connections
from support.resumable_worker import offering
from support.scripted_requester import CallHome
from support.scripted_worker import FINAL, PROLOGUE, SENTINEL, body, dialling, handshake, item

JSON = PayloadCodec.JSON
KILL = TwoPartMessage(b'"kill"')
FLOOD = item("x" * 1000) * 20_000  # more than all buffers on the way hold


def opening(receiver: ResponseReceiver) -> bytes:
    return handshake(receiver.subject) + PROLOGUE + item(0)


async def in_mid_flood(receiver: ResponseReceiver, worker: CallHome) -> "asyncio.Task[None]":
    """Read one item; return with what follows held up because nobody reads it."""
    flooding = asyncio.create_task(worker.send(FLOOD))

    async def held_back() -> bool:
        return receiver.held_back

    assert await receiver.next_item() == 0
    await eventually(held_back)
    return flooding


async def killed(worker: CallHome, flooding: "asyncio.Task[None]") -> None:
    """The worker writes all of it without an error, and reads the kill after that."""
    await flooding
    assert await worker.frame() == KILL
    assert await worker.frame() is None


async def test_a_worker_in_mid_flood_reads_its_kill(listener: ResponseListener) -> None:
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver)) as worker:
        flooding = await in_mid_flood(receiver, worker)
        receiver.kill()
        await killed(worker, flooding)
    await has_connections(listener, 0)


async def test_what_is_read_on_is_not_the_callers(listener: ResponseListener) -> None:
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver)) as worker:
        flooding = await in_mid_flood(receiver, worker)
        receiver.kill()
        await killed(worker, flooding)
        with suppress(StopAsyncIteration):
            while True:
                await receiver.next_item()
    assert receiver.items < FLOOD.count(b"complete_final")


async def test_a_worker_that_breaks_the_protocol_in_its_flood_reads_its_kill(
    listener: ResponseListener,
) -> None:
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver), encode(b'"go"')) as worker:
        await killed(worker, asyncio.create_task(worker.send(FLOOD)))
    await has_connections(listener, 0)


async def test_a_worker_in_mid_flood_reads_its_kill_when_the_listener_closes(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.listener._CLOSING", 30.0)
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver)) as worker:
        flooding = await in_mid_flood(receiver, worker)
        closing = asyncio.create_task(listener.close())
        await killed(worker, flooding)
    await closing
    assert listener.connections == 0


async def test_a_killed_worker_that_does_not_close_is_closed_on(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.01)
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver)):
        assert await receiver.next_item() == 0
        receiver.kill()
        await has_connections(listener, 0)


async def test_a_killed_worker_that_does_not_close_keeps_no_listener_open(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.listener._CLOSING", 0.01)
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver)):
        assert await receiver.next_item() == 0
        await listener.close()
        assert listener.connections == 0


# --- a worker that reads nothing ------------------------------------------------------------

HISTORY = 16  # items of a megabyte: more than the kernel's buffers hold


@asynccontextmanager
async def frozen_worker(
    listener: ResponseListener,
) -> AsyncGenerator[tuple[ResponseReceiver, CallHome]]:
    """A second worker that reads nothing of the history that it was sent."""
    resume = Resumable(timeout=60.0, history_bytes=64 * 1024 * 1024)
    receiver = listener.register(JSON, resume=resume)
    large = item("x" * 1_000_000) * HISTORY
    async with dialling(address_of(listener), offering(receiver.subject, 1), PROLOGUE) as worker:
        sending = asyncio.create_task(worker.send(large))
        for _ in range(HISTORY):
            await receiver.next_item()
        await sending
    await has_connections(listener, 0)
    async with dialling(address_of(listener), offering(receiver.subject, 2)) as worker:
        await has_connections(listener, 1)

        async def connected() -> bool:
            return receiver.connected

        await eventually(connected)
        yield receiver, worker


async def test_a_killed_worker_that_reads_nothing_is_closed_on(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.01)
    async with frozen_worker(listener) as (receiver, _):
        receiver.kill()
        await has_connections(listener, 0)


async def test_a_worker_that_finishes_and_reads_nothing_is_closed_on(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.01)
    async with frozen_worker(listener) as (receiver, worker):
        worker.half_close()
        await has_connections(listener, 0)
        assert receiver.end is None, "another worker may come"


# --- a stream that is over before its final -------------------------------------------------

GIVEN_UP = body(encode_error_item(interrupted_error("nobody can go on"), JSON))
FAILED = body(encode_error_item(error_item_of(ValueError("no")), JSON))


async def given_up(receiver: ResponseReceiver) -> None:
    assert await receiver.next_item() == 0
    with pytest.raises(StreamInterrupted, match="nobody can go on"):
        await receiver.next_item()


async def test_a_worker_that_writes_on_when_it_has_given_up_is_told_once(
    listener: ResponseListener,
) -> None:
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver), GIVEN_UP) as worker:
        await given_up(receiver)
        await killed(worker, asyncio.create_task(worker.send(FLOOD)))
    await has_connections(listener, 0)


async def test_a_final_behind_it_needs_no_kill(listener: ResponseListener) -> None:
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver), GIVEN_UP) as worker:
        await given_up(receiver)
        await worker.send(FINAL + SENTINEL)
        assert await worker.frame() is None


async def test_writing_on_puts_off_no_close(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.1)
    receiver = listener.register(JSON)

    async def write_on(worker: CallHome) -> None:
        with suppress(ConnectionError):
            while True:
                await worker.send(item("x"))
                await asyncio.sleep(0)

    async with dialling(address_of(listener), opening(receiver), GIVEN_UP) as worker:
        await given_up(receiver)
        writing = asyncio.create_task(write_on(worker))
        await has_connections(listener, 0)
        await writing


async def test_a_worker_whose_engine_had_failed_is_closed_on_when_a_newer_one_dials(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.01)
    receiver = listener.register(JSON, resume=Resumable(timeout=60.0))
    first = offering(receiver.subject, 1, fresh=True) + PROLOGUE + item(0) + FAILED
    async with dialling(address_of(listener), first) as older:
        assert await receiver.next_item() == 0
        with pytest.raises(ResponseError):
            await receiver.next_item()
        async with dialling(address_of(listener), offering(receiver.subject, 2)) as newer:
            assert await newer.frame() is None
        await has_connections(listener, 0)
        assert await older.frame() is None
    assert receiver.end is EndState.COMPLETE
