"""One connection for one stream after the other: a real dialler, a real listener."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from dialback.errors import Unknown
from dialback.transport.dynamo_errors import backend_error
from dialback.transport.items import encode_error_item, encode_final, encode_item
from dialback.transport.line import Resumable
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import (
    PayloadCodec,
)
from dialback.transport.response_stream import (
    EndState,
    WorkerEvent,
)
from dialback.transport.two_part import PREFIX, TwoPartMessage, encode
from support.kept_connections import (
    CODECS,
    FRESH,
    JSON,
    LARGE,
    NEXT,
    PATIENT,
    RELEASE,
    Ends,
    Heard,
    rest,
    reusing,
    said_to,
    serve,
)
from support.listening import address_of, has_connections
from support.resumable_worker import resuming
from support.scripted_worker import FINAL, PROLOGUE, SENTINEL, dialling, handshake, item


@pytest.mark.parametrize("codec", CODECS)
async def test_streams_one_after_the_other_share_one_connection(
    ends: Ends, codec: PayloadCodec
) -> None:
    senders = [await ends.stream(*range(n), {"n": n}, codec=codec) for n in range(6)]
    assert [sender.dials for sender in senders] == [1, 0, 0, 0, 0, 0]
    assert len({sender.connection for sender in senders}) == 1
    assert all(sender.released and sender.peer_closed for sender in senders)
    assert not any(sender.left_early or sender.stopped or sender.killed for sender in senders)
    assert {sender.address for sender in senders} == {str(address_of(ends.listener))}
    assert (ends.listener.connections, ends.listener.registered) == (1, 0)


async def test_streams_of_either_codec_share_one_connection(ends: Ends) -> None:
    codecs = [JSON, PayloadCodec.MSGPACK, JSON, PayloadCodec.MSGPACK]
    senders = [await ends.stream({"a": [1, None]}, codec=codec) for codec in codecs]
    assert [sender.dials for sender in senders] == [1, 0, 0, 0]


async def test_a_stream_without_an_item_leaves_its_connection_behind(ends: Ends) -> None:
    assert [(await ends.stream()).dials for _ in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("codec", CODECS)
async def test_a_stream_that_is_resumed_goes_on_on_a_connection_that_was_kept(
    ends: Ends, codec: PayloadCodec
) -> None:
    await ends.kept()
    receiver = ends.register(codec, history_bytes=10_000_000)
    async with resuming(address_of(ends.listener), receiver.subject) as (lost, _):
        bodies = [encode(b"", encode_item(value, codec)) for value in ("a", LARGE)]
        await lost.send(PROLOGUE + b"".join(bodies))
        assert [await receiver.next_item() for _ in bodies] == ["a", LARGE]
        lost.reset()
        while receiver.connected:  # noqa: ASYNC110 -- the receiver has no event for it
            await asyncio.sleep(0)
    sender = await ends.dial(receiver, NEXT)
    assert (sender.dials, sender.fresh) == (0, False)
    answer = await sender.resume_answer(PATIENT, codec)
    assert (answer.resume, answer.delivered) == (2, ["a", LARGE])
    await serve(sender, "b", codec=codec)
    assert await rest(receiver) == ["b"]
    assert (receiver.end, receiver.delivery, receiver.resumed) == (EndState.COMPLETE, 2, 1)
    assert (await ends.stream("after")).dials == 0, "and it is kept again"
    await has_connections(ends.listener, 1)


async def test_streams_with_and_without_an_answer_take_turns(ends: Ends) -> None:
    dials: list[int] = []
    for number, offer in enumerate([NEXT, FRESH, NEXT, NEXT, FRESH]):
        receiver = ends.register()
        sender = await ends.dial(receiver, offer)
        if not offer.fresh:
            assert (await sender.resume_answer(PATIENT, JSON)).resume == 0
        await serve(sender, number)
        assert await rest(receiver) == [number]
        dials.append(sender.dials)
    assert dials == [1, 0, 0, 0, 0]


async def test_large_items_may_follow_small_ones_and_the_other_way_round(ends: Ends) -> None:
    dials = [(await ends.stream(*items)).dials for items in ([1], [LARGE] * 5, [2], [LARGE], [3])]
    assert dials == [1, 0, 0, 0, 0]


async def test_a_stream_whose_caller_is_slow_leaves_its_connection_behind_when_it_is_read(
    ends: Ends,
) -> None:
    await ends.kept()
    receiver = ends.register()
    sender = await ends.dial(receiver)
    values = [f"{number}{LARGE}" for number in range(20)]
    serving = asyncio.create_task(serve(sender, *values))
    first = await receiver.next_item()
    while not receiver.held_back:  # noqa: ASYNC110 -- the receiver has no event for it
        await asyncio.sleep(0)
    assert (await ends.stream("meanwhile")).dials == 1
    assert (await ends.stream("meanwhile")).dials == 0
    assert not serving.done()
    assert [first, *await rest(receiver)] == values
    await serving
    assert (sender.dials, sender.released) == (0, True)
    again = await ends.stream("after")
    assert again.dials == 0
    assert again.connection is sender.connection, "the last one that was used"
    assert ends.listener.connections == 2


async def test_a_stream_that_was_read_to_its_end_only_later_is_kept_apart_from_the_next(
    ends: Ends,
) -> None:
    """The caller need not have read anything for the next stream to come."""
    first, second = ends.register(), ends.register()
    await serve(await ends.dial(first), 1, 2)
    await serve(await ends.dial(second), 3, 4)
    assert (await rest(second), await rest(first)) == ([3, 4], [1, 2])
    assert ends.listener.connections == 1


async def test_a_connection_that_is_kept_does_not_hold_the_stream_before(ends: Ends) -> None:
    receiver = ends.register()
    sender = await ends.dial(receiver)
    await serve(sender, LARGE)
    assert await rest(receiver) == [LARGE]
    gone = weakref.ref(receiver)
    gc.collect()
    gc.disable()
    try:
        del receiver
        assert gone() is None, "no cycle, which would wait for the garbage collector"
    finally:
        gc.enable()
    assert (sender.connection.open, ends.listener.connections) == (True, 1)


@pytest.mark.parametrize("how", ["engine error", "stopped"])
async def test_a_stream_that_is_whole_leaves_its_connection_behind_however_it_ended(
    ends: Ends, how: str
) -> None:
    receiver = ends.register()
    sender = await ends.dial(receiver)
    sender.write_prologue()
    if how == "engine error":
        sender.write_item(encode_error_item(backend_error(Unknown, "no"), JSON))
    else:
        heard = Heard(sender)
        sender.connection.flush()
        while not receiver.connected:  # noqa: ASYNC110 -- the receiver has no event for it
            await asyncio.sleep(0)
        receiver.stop()
        assert await heard.first() is WorkerEvent.STOP
    sender.write_end(encode_final(JSON))
    await sender.finish()
    assert receiver.end is EndState.COMPLETE
    assert (await ends.stream("after")).dials == 0


@pytest.mark.parametrize(
    "test",
    [
        test_streams_of_either_codec_share_one_connection,
        test_streams_with_and_without_an_answer_take_turns,
        test_large_items_may_follow_small_ones_and_the_other_way_round,
        test_a_stream_whose_caller_is_slow_leaves_its_connection_behind_when_it_is_read,
    ],
)
def test_it_is_the_same_under_uvloop(test: Callable[[Ends], Awaitable[None]]) -> None:
    async def main() -> None:
        listener = ResponseListener()
        await listener.start()
        ends = Ends(listener)
        await test(ends)
        ends.dialer.close()
        await listener.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    "frame",
    [
        PREFIX.pack(65537, 0, 0),
        PREFIX.pack(0, 65537, 0),
        encode(b"", b"x"),
        item(1),
        FINAL,
        SENTINEL,
        PROLOGUE,
        encode(),
        b"\xff" * 24,
        handshake("6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6"),
        reusing("6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6"),
    ],
    ids=lambda frame: repr(frame[:48]),
)
async def test_what_is_no_handshake_for_a_stream_is_refused_between_two_streams_too(
    ends: Ends, frame: bytes
) -> None:
    receiver, waiting = ends.register(), ends.register()
    first = reusing(receiver.subject) + PROLOGUE + item(LARGE) + FINAL + SENTINEL
    async with dialling(address_of(ends.listener), first) as worker:
        assert await rest(receiver) == [LARGE]
        assert await worker.frame() == TwoPartMessage(b'{"release":1}')
        assert ends.listener.connections == 1
        await worker.send(frame)
        assert await worker.frame() is None
        assert ends.listener.connections == 0
    assert (ends.listener.registered, waiting.dialled, waiting.end) == (1, False, None)


async def test_the_subject_of_the_stream_before_is_spent(ends: Ends) -> None:
    receiver = ends.register()
    whole = reusing(receiver.subject) + PROLOGUE + FINAL + SENTINEL
    async with dialling(address_of(ends.listener), whole) as worker:
        assert await worker.frame() == TwoPartMessage(b'{"release":1}')
        await worker.send(whole)
        assert await worker.frame() is None
    assert ends.listener.connections == 0


async def test_a_plain_stream_may_follow_and_is_the_last(ends: Ends) -> None:
    receiver, plain = ends.register(), ends.register(resumable=False)
    said = await said_to(
        address_of(ends.listener),
        *(reusing(receiver.subject), PROLOGUE, item(1), FINAL, SENTINEL),
        *(handshake(plain.subject), PROLOGUE, item(2), FINAL, SENTINEL),
    )
    assert said == RELEASE
    assert (await rest(receiver), await rest(plain)) == ([1], [2])


async def test_the_handshakes_time_limit_does_not_bound_the_time_between_two_streams() -> None:
    listener = ResponseListener(handshake_timeout=0.01)
    await listener.start()
    ends = Ends(listener)
    await ends.kept()
    with contextlib.suppress(ConnectionResetError):
        await said_to(address_of(listener))  # the time of a later connection is over
    assert (await ends.stream("second")).dials == 0
    ends.dialer.close()
    await listener.close()


async def test_streams_at_the_same_time_have_connections_of_their_own(ends: Ends) -> None:
    receivers = [ends.register() for _ in range(3)]
    first, second = [await ends.dial(receiver) for receiver in receivers[:2]]
    for sender in (first, second):
        sender.write_prologue()
        sender.connection.flush()
    await has_connections(ends.listener, 2)
    for number, sender in enumerate((first, second)):
        sender.write_item(encode_item(number, JSON))
        sender.write_end(encode_final(JSON))
        await sender.finish()
    third = await ends.dial(receivers[2])
    assert [sender.dials for sender in (first, second, third)] == [1, 1, 0]
    assert third.connection in (first.connection, second.connection)
    await serve(third, 2)
    assert [await rest(receiver) for receiver in receivers] == [[0], [1], [2]]
    assert ends.listener.connections == 2


async def test_many_streams_at_a_time_again_and_again_need_no_more_connections(
    ends: Ends,
) -> None:
    for _ in range(5):
        await asyncio.gather(*(ends.stream(*range(n)) for n in range(8)))
    assert ends.listener.connections <= 8


async def test_connections_to_two_requesters_are_kept_apart(ends: Ends) -> None:
    other = ResponseListener()
    await other.start()
    await ends.kept()
    receiver = other.register(JSON, resume=Resumable(timeout=PATIENT))
    sender = await ends.dialer.dial(address_of(other), receiver.subject, offer=FRESH)
    assert sender.dials == 1
    await serve(sender, 1)
    assert await rest(receiver) == [1]
    assert (await ends.stream("second")).dials == 0
    assert (ends.listener.connections, other.connections) == (1, 1)
    await other.close()
