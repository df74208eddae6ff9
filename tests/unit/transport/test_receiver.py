import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from dialback.errors import (
    EngineRefusedError,
    RequestTimeoutError,
    ResponseError,
    StreamInterrupted,
)
from dialback.transport.address import Address
from dialback.transport.incoming import IncomingConnection
from dialback.transport.items import encode_item
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import PayloadCodec, ResumeOffer
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import EndState
from dialback.transport.two_part import FrameLimits, TwoPartMessage, encode
from support.captures import CAPTURES, Capture, capture
from support.frames import decode_all
from support.scripted_worker import (
    FINAL,
    PROLOGUE,
    SENTINEL,
    body,
    dialling,
    handshake,
    item,
)

JSON = PayloadCodec.JSON
STOP, KILL = TwoPartMessage(b'"stop"'), TwoPartMessage(b'"kill"')
RAISE_MID = capture("1.6.1", "raise_mid")


class Stream:
    """A registered stream, and the listener that its worker dials."""

    def __init__(self, listener: ResponseListener, address: Address) -> None:
        self.listener = listener
        self.address = address
        self.receiver = listener.register(JSON)
        self.open = handshake(self.receiver.subject) + PROLOGUE

    async def all(self) -> list[Any]:
        return await _all_of(self.receiver)


async def _all_of(receiver: ResponseReceiver) -> list[Any]:
    """Items and error items up to a good end."""
    items: list[Any] = []
    while True:
        try:
            items.append(await receiver.next_item())
        except ResponseError as error:
            items.append(error)
        except StopAsyncIteration:
            return items


async def _turns() -> None:
    """Let the loop turn: what could happen by itself has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def stream() -> AsyncGenerator[Stream]:
    listener = ResponseListener()
    yield Stream(listener, await listener.start())
    await listener.close()


# --- a whole stream -----------------------------------------------------------------------


def _feed(captured: Capture, *chunks: bytes) -> ResponseReceiver:
    """A receiver that was given the chunks as one connection's bytes."""

    def settled(_: ResponseReceiver) -> None:
        """Nobody keeps a table here."""

    receiver = ResponseReceiver("s", captured.codec, on_settled=settled)
    incoming = IncomingConnection(
        lambda _: receiver, on_closed=lambda _: None, limits=FrameLimits(), handshake_timeout=60
    )
    for chunk in chunks:
        incoming.connection.data_received(chunk)
    incoming.connection.connection_lost(None)
    return receiver


def _seen_by_caller(captured: Capture) -> list[Any]:
    """What a real requester gave its caller."""
    items = [{"i": number, "text": f"item-{number}"} for number in range(5)]
    kept = {"normal": 5, "empty": 0, "fixed_id_and_metadata": 1, "raise_before": 0, "raise_mid": 2}
    return items[: kept.get(captured.scenario, 3)]


@pytest.mark.parametrize("cut", range(len(RAISE_MID.worker_bytes) + 1))
async def test_a_real_workers_stream_is_read_the_same_at_any_cut(cut: int) -> None:
    stream = RAISE_MID.worker_bytes
    receiver = _feed(RAISE_MID, stream[:cut], stream[cut:])
    *items, error = await _all_of(receiver)
    assert items == _seen_by_caller(RAISE_MID)
    assert isinstance(error, ResponseError)
    assert receiver.end is EndState.COMPLETE


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
async def test_every_real_workers_stream_is_read_byte_by_byte(captured: Capture) -> None:
    receiver = _feed(captured, *(bytes([byte]) for byte in captured.worker_bytes))
    if captured.scenario == "stop":  # cut short by the requester's stop, which is not here
        items = [await receiver.next_item() for _ in range(3)]
        with pytest.raises(StreamInterrupted):
            await receiver.next_item()
    else:
        items = await _all_of(receiver)
        assert receiver.end is EndState.COMPLETE
    errors = [str(entry) for entry in items if isinstance(entry, ResponseError)]
    assert [entry for entry in items if not isinstance(entry, ResponseError)] == (
        _seen_by_caller(captured)
    )
    assert errors == {
        "raise_before": ["Backend InvalidArgument: ValueError: lab: raised before first yield"],
        "raise_mid": ["Backend Unknown: RuntimeError: lab: raised mid-stream"],
    }.get(captured.scenario, [])


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
async def test_a_real_workers_stream_is_read_over_a_socket(captured: Capture) -> None:
    listener = ResponseListener()
    address = await listener.start()
    receiver = listener.register(captured.codec)
    if captured.scenario == "stop":
        receiver.stop()
    subject = captured.frames[0].header.decode().split('"')[3]
    stream = captured.worker_bytes.replace(subject.encode(), receiver.subject.encode())
    async with dialling(address, stream) as worker:
        items = await _all_of_after(receiver, worker.half_close)
        if captured.scenario == "stop":
            assert await worker.frame() == STOP
        assert await worker.frame() is None
    kept = [entry for entry in items if not isinstance(entry, ResponseError)]
    assert kept == _seen_by_caller(captured)
    assert receiver.items == len(kept)
    await listener.close()


async def _all_of_after(receiver: ResponseReceiver, act: Any) -> list[Any]:
    act()
    return await _all_of(receiver)


async def test_a_stream_without_items_is_complete(stream: Stream) -> None:
    async with dialling(stream.address, stream.open, FINAL, SENTINEL) as worker:
        assert await stream.all() == []
        assert await worker.frame() is None
    assert stream.receiver.end is EndState.COMPLETE
    assert stream.receiver.started
    assert stream.receiver.dialled


async def test_the_end_is_known_at_the_final_and_the_subject_is_spent_at_the_first_item(
    stream: Stream,
) -> None:
    receiver = stream.receiver
    assert (receiver.started, receiver.dialled, receiver.connected) == (False, False, False)
    async with dialling(stream.address, stream.open, item(1)) as worker:
        assert await receiver.next_item() == 1
        assert (receiver.started, receiver.dialled, receiver.connected) == (True, True, True)
        assert stream.listener.registered == 0
        assert receiver.end is None
        await worker.send(FINAL)
        assert await stream.all() == []


async def test_a_final_with_data_is_an_item_and_the_end(stream: Stream) -> None:
    final = body(b'{"data":{"data":7},"complete_final":true}')
    async with dialling(stream.address, stream.open, final):
        assert await stream.all() == [7]


@pytest.mark.parametrize(
    "late", [item(2), encode(b'"stop"'), encode(b'"sentinel"', b"x"), b"\xff" * 24]
)
async def test_what_follows_the_final_cannot_spoil_it(stream: Stream, late: bytes) -> None:
    async with dialling(stream.address, stream.open, item(1), FINAL, late, item(3)) as worker:
        assert await stream.all() == [1]
        assert await worker.frame() == KILL
        assert await worker.frame() is None
    assert stream.receiver.end is EndState.COMPLETE


async def test_a_worker_that_stays_after_its_final_is_closed_on(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.01)
    async with dialling(stream.address, stream.open, FINAL) as worker:
        assert await stream.all() == []
        assert await worker.frame() is None


async def test_an_empty_frame_is_ignored(stream: Stream) -> None:
    async with dialling(stream.address, stream.open, encode(), item(1), encode(), FINAL):
        assert await stream.all() == [1]


# --- error items --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotated", "kind", "message"),
    [
        (
            b'{"event":"error","error":{"error_type":{"Backend":"InvalidArgument"},"message":"m"}}',
            "Backend InvalidArgument",
            "m",
        ),
        (b'{"event":"error","error":{"error_type":"Unknown","message":"m"}}', "Unknown", "m"),
        (b'{"event":"error","comment":["a","b"]}', "Unknown", "a, b"),
        (b'{"event":"error","comment":[]}', "Unknown", "unknown error"),
        (b'{"event":"error"}', "Unknown", "unknown error"),
    ],
)
async def test_an_error_item_is_raised_and_the_stream_goes_on(
    stream: Stream, annotated: bytes, kind: str, message: str
) -> None:
    error = body(b'{"data":' + annotated + b',"complete_final":false}')
    async with dialling(stream.address, stream.open, item(1), error, item(2), FINAL):
        assert await stream.receiver.next_item() == 1
        with pytest.raises(ResponseError) as caught:
            await stream.receiver.next_item()
        assert (caught.value.kind, caught.value.message) == (kind, message)
        assert await stream.all() == [2]
    assert stream.receiver.items == 2


async def test_an_error_items_class_and_reason_are_kept(stream: Stream) -> None:
    error = body(
        b'{"data":{"event":"error","error":{"error_type":"Unknown","class":"Internal",'
        b'"reason":"backend.unknown","message":"m"}},"complete_final":false}'
    )
    async with dialling(stream.address, stream.open, error, FINAL):
        with pytest.raises(ResponseError) as caught:
            await stream.receiver.next_item()
    assert (caught.value.error_class, caught.value.reason) == ("Internal", "backend.unknown")


async def test_an_error_object_without_the_event_is_no_error(stream: Stream) -> None:
    plain = body(
        b'{"data":{"data":1,"error":{"error_type":"Unknown","message":"m"}},"complete_final":false}'
    )
    async with dialling(stream.address, stream.open, plain, FINAL):
        assert await stream.all() == [1]


@pytest.mark.parametrize(
    "bad",
    [
        b"{}",
        b"not json",
        b'{"data":{"data":NaN},"complete_final":false}',
        b'{"data":{"data":"\xff"},"complete_final":false}',
        b'{"data":{"data":' + b"[" * 5000,
        b'{"complete_final":false}',
        b'{"data":null,"complete_final":false}',
    ],
    ids=lambda bad: repr(bad[:24]),
)
async def test_a_body_that_cannot_be_read_is_an_error_item_and_the_stream_goes_on(
    stream: Stream, bad: bytes
) -> None:
    async with dialling(stream.address, stream.open, body(bad), item(1), FINAL):
        error, *rest = await stream.all()
    assert isinstance(error, ResponseError)
    assert error.kind == "Unknown"
    assert rest == [1]


# --- refusal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prologue", "text"),
    [
        (b'{"error":"Generate Error: boom"}', "Generate Error: boom"),
        (b'{"error":""}', "refused without a reason"),
        (b'{"error":"no","typed_error":{"error_type":"Unknown","message":"no"}}', "no"),
    ],
)
async def test_an_error_prologue_is_a_refusal(stream: Stream, prologue: bytes, text: str) -> None:
    frames = handshake(stream.receiver.subject) + encode(prologue) + SENTINEL
    async with dialling(stream.address, frames) as worker:
        with pytest.raises(EngineRefusedError, match=text):
            await stream.receiver.next_item()
        assert await worker.frame() is None
    assert stream.receiver.end is EndState.BROKEN
    assert stream.listener.registered == 0
    with pytest.raises(EngineRefusedError):
        await stream.receiver.next_item()


# --- connections that are lost ------------------------------------------------------------


@pytest.mark.parametrize("part", ["handshake", "prologue"])
@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_connection_lost_before_the_first_item_waits_for_the_next_worker(
    stream: Stream, part: str, how: str
) -> None:
    receiver = stream.receiver
    frames = handshake(receiver.subject) if part == "handshake" else stream.open
    async with dialling(stream.address, frames) as first:
        await _attached(receiver)
        if how == "fin":
            first.half_close()
            assert await first.frame() is None
        else:
            first.reset()
            await _detached(receiver)
    assert receiver.interruptions == 1
    assert receiver.end is None
    assert stream.listener.registered == 1
    async with dialling(stream.address, stream.open, item(1), FINAL):
        assert await stream.all() == [1]
    assert receiver.interruptions == 1


async def _attached(receiver: ResponseReceiver) -> None:
    while not receiver.connected:  # noqa: ASYNC110 -- the receiver has no event for it
        await asyncio.sleep(0)


async def _detached(receiver: ResponseReceiver) -> None:
    while receiver.connected:  # noqa: ASYNC110 -- the receiver has no event for it
        await asyncio.sleep(0)


async def test_before_the_first_item_the_newest_dial_wins(stream: Stream) -> None:
    receiver = stream.receiver
    async with dialling(stream.address, stream.open) as older:
        await _attached(receiver)
        async with dialling(stream.address, stream.open) as newer:
            assert await older.frame() is None
            assert receiver.interruptions == 1
            await newer.send(item("newer") + FINAL)
            assert await stream.all() == ["newer"]
    assert receiver.end is EndState.COMPLETE


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_connection_lost_after_an_item_interrupts_the_stream(
    stream: Stream, how: str
) -> None:
    async with dialling(stream.address, stream.open, item(1), item(2)) as worker:
        assert await stream.receiver.next_item() == 1
        if how == "fin":
            worker.half_close()
        else:
            worker.reset()
        assert await stream.receiver.next_item() == 2
        with pytest.raises(StreamInterrupted, match=r"after 2 items: .*(closed|lost)") as caught:
            await stream.receiver.next_item()
    assert caught.value.items == 2
    assert stream.receiver.end is EndState.BROKEN
    assert stream.receiver.interruptions == 1


@pytest.mark.parametrize("items", [0, 1])
async def test_a_sentinel_without_a_final_interrupts_at_once(stream: Stream, items: int) -> None:
    async with dialling(stream.address, stream.open, item(1) * items, SENTINEL) as worker:
        for _ in range(items):
            assert await stream.receiver.next_item() == 1
        with pytest.raises(StreamInterrupted, match="ended it without a final") as caught:
            await stream.receiver.next_item()
        assert await worker.frame() is None
    assert caught.value.items == items
    assert stream.listener.registered == 0


@pytest.mark.parametrize(
    "frame",
    [
        encode(b'"stop"'),
        encode(b'"kill"'),
        encode(b'"go"'),
        encode(b'"\xff"'),
        encode(b'{"more":' + b"[" * 5000),
        encode(b'"sentinel"', b"x"),
        encode(b"h", b"d"),
        b"\xff" * 24,
    ],
    ids=lambda frame: repr(frame[16:40]),
)
async def test_a_worker_that_breaks_the_protocol_is_killed_and_nothing_behind_it_counts(
    stream: Stream, frame: bytes
) -> None:
    behind = item("behind") + FINAL
    async with dialling(stream.address, stream.open, item(1), frame, behind) as worker:
        assert await stream.receiver.next_item() == 1
        with pytest.raises(StreamInterrupted, match="broke the protocol") as caught:
            await stream.receiver.next_item()
        assert await worker.frame() == KILL
        assert await worker.frame() is None
    assert caught.value.items == 1
    assert stream.receiver.end is EndState.BROKEN


@pytest.mark.parametrize(
    "frame", [item(1), encode(), encode(b"{"), encode(b'{"error":null}', b"x")]
)
async def test_a_malformed_prologue_interrupts_at_once(stream: Stream, frame: bytes) -> None:
    async with dialling(stream.address, handshake(stream.receiver.subject), frame):
        with pytest.raises(StreamInterrupted, match="malformed prologue"):
            await stream.receiver.next_item()


# --- stop, kill, fail ---------------------------------------------------------------------


async def test_a_stop_is_sent_once_and_what_the_worker_still_writes_arrives(
    stream: Stream,
) -> None:
    async with dialling(stream.address, stream.open, item(1)) as worker:
        assert await stream.receiver.next_item() == 1
        stream.receiver.stop()
        stream.receiver.stop()
        assert await worker.frame() == STOP
        await worker.send(item(2) + FINAL + SENTINEL)
        assert await stream.all() == [2]
        assert await worker.frame() is None
    assert stream.receiver.end is EndState.COMPLETE


async def test_a_stop_before_the_dial_back_is_sent_right_after_the_handshake(
    stream: Stream,
) -> None:
    stream.receiver.stop()
    async with dialling(stream.address, handshake(stream.receiver.subject)) as worker:
        assert await worker.frame() == STOP
        await worker.send(PROLOGUE + FINAL)
        assert await stream.all() == []
    assert stream.receiver.end is EndState.COMPLETE


@pytest.mark.parametrize("items", [0, 1])
async def test_after_a_stop_a_worker_that_just_closes_is_a_quiet_end(
    stream: Stream, items: int
) -> None:
    async with dialling(stream.address, stream.open, item(1) * items) as worker:
        await _attached(stream.receiver)
        stream.receiver.stop()
        assert await worker.frame() == STOP
        worker.half_close()
        assert await stream.all() == [1] * items
    assert stream.receiver.end is EndState.CANCELLED


async def test_a_kill_ends_both_sides_and_what_has_arrived_can_be_read(stream: Stream) -> None:
    async with dialling(stream.address, stream.open, item(1), item(2)) as worker:
        assert await stream.receiver.next_item() == 1
        stream.receiver.kill()
        stream.receiver.kill()
        assert await worker.frame() == KILL
        assert await worker.frame() is None
    assert await stream.all() == [2]
    assert stream.receiver.end is EndState.CANCELLED


async def test_a_kill_before_the_dial_back_spends_the_subject(stream: Stream) -> None:
    stream.receiver.kill()
    assert await stream.all() == []
    assert stream.listener.registered == 0
    async with dialling(stream.address, stream.open) as worker:
        assert await worker.frame() is None
    assert not stream.receiver.dialled


async def test_a_kill_wakes_a_caller_that_waits(stream: Stream) -> None:
    waiting = asyncio.create_task(stream.all())
    await _turns()
    stream.receiver.kill()
    assert await waiting == []


async def test_a_caller_that_is_cancelled_may_wait_again(stream: Stream) -> None:
    waiting = asyncio.create_task(stream.receiver.next_item())
    await _turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with dialling(stream.address, stream.open, item(1), FINAL):
        assert await stream.all() == [1]


async def test_a_caller_cancelled_in_the_turn_of_an_item_does_not_lose_it(stream: Stream) -> None:
    receiver = stream.receiver
    waiting = asyncio.create_task(receiver.next_item())
    await _turns()
    waiting.cancel()
    receiver.receive_body(b'{"data":{"data":1},"complete_final":false}')
    receiver.receive_body(b'{"data":{"data":2},"complete_final":true}')
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await stream.all() == [1, 2]


async def test_a_timeout_is_raised_to_the_caller_and_kills_the_worker(stream: Stream) -> None:
    async with dialling(stream.address, stream.open) as worker:
        waiting = asyncio.create_task(stream.receiver.next_item())
        await _attached(stream.receiver)
        stream.receiver.fail(RequestTimeoutError("no first item within 60 s"))
        with pytest.raises(RequestTimeoutError, match="no first item within 60 s"):
            await waiting
        assert await worker.frame() == KILL
    assert stream.listener.registered == 0


async def test_after_the_end_stop_kill_and_fail_change_nothing(stream: Stream) -> None:
    async with dialling(stream.address, stream.open, FINAL) as worker:
        assert await stream.all() == []
        stream.receiver.stop()
        stream.receiver.kill()
        stream.receiver.fail(RequestTimeoutError("late"))
        assert await stream.all() == []
        await worker.send(SENTINEL)
        assert await worker.frame() is None
    assert stream.receiver.end is EndState.COMPLETE


async def test_a_stop_to_a_connection_that_is_closing_is_no_error(stream: Stream) -> None:
    incoming = IncomingConnection(
        lambda _: stream.receiver,
        on_closed=lambda _: None,
        limits=FrameLimits(),
        handshake_timeout=60,
    )
    incoming.connection.data_received(stream.open)
    stream.receiver.stop()
    assert stream.receiver.end is None
    incoming.connection.connection_lost(None)
    assert stream.receiver.end is EndState.CANCELLED


# --- back-pressure ------------------------------------------------------------------------


async def test_a_slow_caller_holds_the_worker_back_and_gets_every_item(stream: Stream) -> None:
    big = "x" * 200_000
    async with dialling(stream.address, stream.open) as worker:
        frames = b"".join(item([number, big]) for number in range(200))
        sending = asyncio.create_task(worker.send(frames + FINAL))
        assert await stream.receiver.next_item() == [0, big]
        await _turns()
        assert not sending.done()
        numbers = [number for number, _ in await stream.all()]
        assert numbers == list(range(1, 200))
        await sending


async def test_large_items_are_held_back_by_their_bytes_long_before_their_number() -> None:
    held: list[bool] = []

    class Held:
        offer: ResumeOffer | None = None

        def send(self, frame: bytes) -> None:
            raise AssertionError(frame)

        def hold_back(self, value: bool) -> None:
            held.append(value)

        def close_later(self) -> None:
            raise AssertionError

        def discard(self) -> None:
            raise AssertionError

        def dismiss(self, delivery: int) -> None:
            raise AssertionError(delivery)

    receiver = ResponseReceiver("s", JSON, on_settled=lambda _: None)
    receiver.attach(Held())
    large = encode_item("x" * 400_000, JSON)
    for _ in range(3):
        receiver.receive_body(large)
    assert held == [True], "three items, more than a megabyte"


async def test_reading_goes_on_when_half_of_the_bytes_are_taken(stream: Stream) -> None:
    large = "x" * 400_000
    async with dialling(stream.address, stream.open) as worker:
        frames = b"".join(item(large) for _ in range(20)) + FINAL
        _, items = await asyncio.gather(worker.send(frames), stream.all())
        assert items == [large] * 20


async def test_a_thousand_small_items_pass_through_a_caller_that_reads_late(
    stream: Stream,
) -> None:
    async with dialling(stream.address, stream.open) as worker:
        await worker.send(b"".join(item(number) for number in range(1000)) + FINAL + SENTINEL)
        await _attached(stream.receiver)
        await _turns()
        assert await stream.all() == list(range(1000))
        assert await worker.frame() is None


async def test_a_held_back_worker_is_read_again_when_the_stream_ends(stream: Stream) -> None:
    items = b"".join(item(number) for number in range(100))
    async with dialling(stream.address, stream.open, items) as worker:
        assert await stream.receiver.next_item() == 0
        stream.receiver.kill()
        assert await worker.frame() == KILL
        assert await worker.frame() is None
        assert (await stream.all())[:63] == list(range(1, 64))


def test_the_frames_used_here_are_frames() -> None:
    assert [frame.kind for frame in decode_all(PROLOGUE + item(1) + FINAL + SENTINEL)] == [
        "header-only",
        "data-only",
        "data-only",
        "header-only",
    ]
