"""Which ends of a stream leave its connection behind."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dialback.errors import EngineRefusedError, StreamInterrupted, Unknown
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.dial import Dialer
from dialback.transport.dynamo_errors import backend_error, interrupted_error, refusal_of
from dialback.transport.items import encode_error_item, encode_final, encode_item
from dialback.transport.messages import (
    ResumeOffer,
)
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import (
    SENTINEL_FRAME,
    EndState,
    WorkerEvent,
)
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import encode
from support.kept_connections import (
    FRESH,
    JSON,
    KEEPING,
    NEXT,
    PATIENT,
    Ends,
    Heard,
    rest,
    reusing,
    serve,
)
from support.listening import address_of, has_connections
from support.resumable_worker import resuming
from support.scripted_requester import ScriptedRequester
from support.scripted_worker import FINAL, PROLOGUE, SENTINEL, item


async def _stop_without_final(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    heard = Heard(sender)
    receiver.stop()
    assert await heard.first() is WorkerEvent.STOP
    await sender.finish()
    assert receiver.end is EndState.CANCELLED


async def _kill(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    heard = Heard(sender)
    receiver.kill()
    assert await heard.first() is WorkerEvent.KILL
    assert receiver.end is EndState.CANCELLED


async def _kill_that_crosses_the_end(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    sender.write_end(encode_final(JSON))
    receiver.kill()
    await sender.finish()
    assert receiver.end is EndState.CANCELLED


async def _timeout(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    heard = Heard(sender)
    receiver.fail(StreamInterrupted(1, "the deadline is over"))
    assert await heard.first() is WorkerEvent.KILL
    with pytest.raises(StreamInterrupted):
        await rest(receiver)


async def _hand_over(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    await sender.finish()
    assert (receiver.end, receiver.interruptions) == (None, 1)
    receiver.kill()


async def _hand_over_behind_an_engine_error(
    sender: ResponseSender, receiver: ResponseReceiver
) -> None:
    sender.write_item(encode_error_item(backend_error(Unknown, "no"), JSON))
    await sender.finish()
    assert receiver.end is EndState.COMPLETE


async def _broken_off_by_its_worker(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    sender.write_item(encode_error_item(interrupted_error("nobody can go on"), JSON))
    sender.write_end(encode_final(JSON))
    await sender.finish()
    assert receiver.end is EndState.BROKEN


async def _no_sentinel(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    sender.write_final(encode_final(JSON))
    sender.connection.close()
    assert await rest(receiver) == []
    assert receiver.end is EndState.COMPLETE


async def _violation(frame: bytes, sender: ResponseSender, receiver: ResponseReceiver) -> None:
    heard = Heard(sender)
    sender.connection.write(frame)
    assert await heard.first() is WorkerEvent.KILL
    with pytest.raises(StreamInterrupted, match="broke the protocol"):
        await rest(receiver)


async def _header_with_an_item(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    await _violation(encode(b"h", b"d"), sender, receiver)


async def _a_second_handshake(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    await _violation(reusing(receiver.subject), sender, receiver)


async def _garbage(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    await _violation(b"\xff" * 24, sender, receiver)


async def _an_item_behind_the_final(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    heard = Heard(sender)
    sender.write_final(encode_final(JSON))
    sender.connection.write(item("too late"), SENTINEL_FRAME)
    assert await heard.first() is WorkerEvent.KILL
    assert (await rest(receiver), receiver.end) == ([], EndState.COMPLETE)


async def _end_of_the_worker(sender: ResponseSender, receiver: ResponseReceiver) -> None:
    """It does not wait for what the requester has to say."""
    sender.write_end(encode_final(JSON))
    sender.end_linger()
    await sender.finish()
    assert await rest(receiver) == []
    assert receiver.end is EndState.COMPLETE


UNTIDY: list[Callable[[ResponseSender, ResponseReceiver], Awaitable[None]]] = [
    _stop_without_final,
    _kill,
    _kill_that_crosses_the_end,
    _timeout,
    _hand_over,
    _hand_over_behind_an_engine_error,
    _broken_off_by_its_worker,
    _no_sentinel,
    _header_with_an_item,
    _a_second_handshake,
    _garbage,
    _an_item_behind_the_final,
    _end_of_the_worker,
]


@pytest.mark.parametrize("reused", [False, True], ids=["dialled", "kept"])
@pytest.mark.parametrize("end", UNTIDY, ids=lambda end: str(end.__name__).strip("_"))
async def test_a_stream_that_does_not_end_in_order_leaves_no_connection_behind(
    ends: Ends,
    reused: bool,
    end: Callable[[ResponseSender, ResponseReceiver], Awaitable[None]],
) -> None:
    if reused:
        await ends.kept()
    receiver = ends.register()
    sender = await ends.dial(receiver)
    assert sender.dials == (0 if reused else 1)
    sender.write_prologue()
    sender.write_item(encode_item(1, JSON))
    sender.connection.flush()
    assert await receiver.next_item() == 1
    await end(sender, receiver)
    sender.abort()
    assert await sender.connection.wait_closed(10)
    await has_connections(ends.listener, 0)
    assert not sender.released
    assert (await ends.stream("after")).dials == 1
    assert (ends.listener.connections, ends.listener.registered) == (1, 0)


async def test_a_refusal_leaves_no_connection_behind(ends: Ends) -> None:
    await ends.kept()
    receiver = ends.register()
    sender = await ends.dial(receiver)
    sender.write_refusal(refusal_of(ValueError("no")))
    await sender.finish()
    with pytest.raises(EngineRefusedError, match="no"):
        await receiver.next_item()
    assert await sender.connection.wait_closed(10)
    await has_connections(ends.listener, 0)
    assert (await ends.stream("after")).dials == 1


async def test_a_worker_that_is_superseded_leaves_no_connection_behind(ends: Ends) -> None:
    await ends.kept()
    receiver = ends.register()
    older = await ends.dial(receiver)
    older.write_prologue()
    older.write_item(encode_item(0, JSON))
    older.connection.flush()
    assert await receiver.next_item() == 0
    heard = Heard(older)
    newer = await ends.dial(receiver, NEXT)
    assert (older.dials, newer.dials) == (0, 1)
    assert await heard.first() is WorkerEvent.SUPERSEDED
    assert (await newer.resume_answer(PATIENT, JSON)).resume == 1
    older.abort()
    assert await older.connection.wait_closed(10)
    await serve(newer, 1)
    assert await rest(receiver) == [1]
    await has_connections(ends.listener, 1)
    again = await ends.stream("after")
    assert again.connection is newer.connection


@pytest.mark.parametrize("offer", [FRESH, NEXT], ids=["fresh", "asks"])
async def test_a_worker_that_is_outranked_on_a_connection_that_was_kept_closes_it(
    ends: Ends, offer: ResumeOffer
) -> None:
    await ends.kept()
    receiver = ends.register()
    async with resuming(address_of(ends.listener), receiver.subject, delivery=9, epoch=5) as (
        serving,
        _,
    ):
        sender = await ends.dial(receiver, offer)
        assert sender.dials == 0
        heard = Heard(sender)
        sender.connection.flush()
        assert await heard.first() is WorkerEvent.SUPERSEDED
        sender.abort()
        assert await sender.connection.wait_closed(10)
        await has_connections(ends.listener, 1)
        await serving.send(PROLOGUE + item(1) + FINAL + SENTINEL)
        assert await rest(receiver) == [1]
    assert (await ends.stream("after")).dials == 1


async def test_a_worker_that_is_not_the_first_on_a_connection_that_was_kept_closes_it(
    ends: Ends,
) -> None:
    await ends.kept()
    receiver = ends.register()
    async with resuming(address_of(ends.listener), receiver.subject) as (first, _):
        first.reset()
        while receiver.connected:  # noqa: ASYNC110 -- the receiver has no event for it
            await asyncio.sleep(0)
    sender = await ends.dial(receiver)
    assert sender.dials == 0
    heard = Heard(sender)
    sender.connection.flush()
    assert await heard.first() is WorkerEvent.ANSWER
    sender.abort()
    assert await sender.connection.wait_closed(10)
    await has_connections(ends.listener, 0)
    assert (await ends.stream("after")).dials == 1


async def test_a_worker_that_is_cancelled_while_it_waits_for_the_release_closes(
    requester: ScriptedRequester,
) -> None:
    dialer = Dialer(CallHomePolicy(), KEEPING)
    address = Address("127.0.0.1", requester.port)
    sender = await dialer.dial(address, "s", offer=FRESH)
    sender.write_prologue()
    sender.write_end(encode_final(JSON))
    finishing = asyncio.create_task(sender.finish())
    home = await requester.connection()
    await home.frames()
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    sender.abort()
    assert await sender.connection.wait_closed(10)
    again = await dialer.dial(address, "s", offer=FRESH)
    assert again.dials == 1
    again.abort()
    assert await again.connection.wait_closed(10)
