"""A kill arrives, whatever its worker is writing: who kills reads on until the worker closes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest

from dialback.transport.address import Address
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import PayloadCodec
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.two_part import TwoPartMessage, encode
from support.eventually import eventually
from support.scripted_requester import CallHome
from support.scripted_worker import PROLOGUE, dialling, handshake, item

JSON = PayloadCodec.JSON
KILL = TwoPartMessage(b'"kill"')
FLOOD = item("x" * 1000) * 20_000  # more than all buffers on the way hold


@pytest.fixture
async def listener() -> AsyncGenerator[ResponseListener]:
    listener = ResponseListener()
    await listener.start()
    yield listener
    await listener.close()


def address_of(listener: ResponseListener) -> Address:
    assert listener.address is not None
    return listener.address


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


async def nobody_left(listener: ResponseListener) -> None:
    async def none() -> bool:
        return listener.connections == 0

    await eventually(none)


async def test_a_worker_in_mid_flood_reads_its_kill(listener: ResponseListener) -> None:
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver)) as worker:
        flooding = await in_mid_flood(receiver, worker)
        receiver.kill()
        await killed(worker, flooding)
    await nobody_left(listener)


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
    await nobody_left(listener)


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
        await nobody_left(listener)


async def test_a_killed_worker_that_does_not_close_keeps_no_listener_open(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.listener._CLOSING", 0.01)
    receiver = listener.register(JSON)
    async with dialling(address_of(listener), opening(receiver)):
        assert await receiver.next_item() == 0
        await listener.close()
        assert listener.connections == 0
