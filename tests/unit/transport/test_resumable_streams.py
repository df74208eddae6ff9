"""The requester's end of a stream that survives its worker (overview section 4)."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from typing_extensions import override
from xxhash import xxh3_64

from dialback.errors import (
    EngineRefusedError,
    ResponseError,
    StreamInterrupted,
    Unknown,
)
from dialback.transport.address import Address
from dialback.transport.dynamo_errors import backend_error, interrupted_error
from dialback.transport.items import encode_error_item, encode_final, encode_item
from dialback.transport.line import Interruption, LineEnd, Resumable
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import PayloadCodec, ResumeOffer
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import EndState
from dialback.transport.resume_frames import read_answer
from dialback.transport.two_part import TwoPartMessage, decode, encode
from support.resumable_worker import offering, resuming, said, superseded
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
PATIENT = 60.0


class Stream:
    """A registered resumable stream, and the listener that its workers dial."""

    def __init__(self, listener: ResponseListener, address: Address) -> None:
        self.listener = listener
        self.address = address
        self.interruptions: list[Interruption] = []
        self.receiver: ResponseReceiver = listener.register(JSON)
        self.register(JSON)

    def register(
        self, codec: PayloadCodec, *, timeout: float = PATIENT, history_bytes: int = 0
    ) -> ResponseReceiver:
        self.receiver.kill()
        self.receiver = self.listener.register(
            codec,
            resume=Resumable(timeout=timeout, history_bytes=history_bytes),
            on_interruption=self.interruptions.append,
        )
        return self.receiver

    def worker(self, delivery: int = 1, epoch: int = 1, *, unable: bool = False) -> Any:
        subject = self.receiver.subject
        return resuming(self.address, subject, delivery=delivery, epoch=epoch, unable=unable)

    def fresh(self, epoch: int = 1) -> bytes:
        """The handshake of a first delivery."""
        return offering(self.receiver.subject, 1, epoch, fresh=True)

    async def items(self, count: int) -> list[Any]:
        return [await self.receiver.next_item() for _ in range(count)]

    async def rest(self) -> list[Any]:
        items: list[Any] = []
        while True:
            try:
                items.append(await self.receiver.next_item())
            except StopAsyncIteration:
                return items

    async def disconnected(self) -> None:
        while self.receiver.connected:  # noqa: ASYNC110 -- the receiver has no event for it
            await asyncio.sleep(0)


@pytest.fixture
async def stream() -> AsyncGenerator[Stream]:
    listener = ResponseListener()
    yield Stream(listener, await listener.start())
    await listener.close()


# --- the answer ---------------------------------------------------------------------------


async def test_an_announced_handshake_is_answered_and_no_other(stream: Stream) -> None:
    async with stream.worker() as (worker, answer):
        assert said(answer) == (0, 0)
        await worker.send(PROLOGUE + item(0) + FINAL + SENTINEL)
        assert await stream.rest() == [0]
        assert await worker.frame() is None
    plain = stream.register(JSON)
    async with dialling(stream.address, handshake(plain.subject), PROLOGUE, FINAL) as worker:
        assert await stream.rest() == []
        await worker.send(SENTINEL)
        assert await worker.frame() is None


async def test_a_handshake_that_announces_what_was_not_asked_for_is_a_plain_one(
    stream: Stream,
) -> None:
    plain = stream.listener.register(JSON)
    frames = offering(plain.subject) + PROLOGUE + item(1) + FINAL + SENTINEL
    async with dialling(stream.address, frames) as worker:
        assert await plain.next_item() == 1
        assert stream.listener.registered == 1, "spent at the first item"
        assert await worker.frame() is None
    assert plain.delivery == 0


async def test_a_stream_goes_on_on_another_worker_where_the_first_was_lost(
    stream: Stream,
) -> None:
    receiver = stream.receiver
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + item(1))
        assert await stream.items(2) == [0, 1]
        assert (receiver.delivery, receiver.resumed) == (1, 0)
        worker.reset()
        await stream.disconnected()
    assert stream.listener.registered == 1
    async with stream.worker(2) as (worker, answer):
        assert said(answer) == (2, 0)
        await worker.send(PROLOGUE + item(2) + FINAL + SENTINEL)
        assert await stream.rest() == [2]
        assert await worker.frame() is None
    assert (receiver.delivery, receiver.interruptions, receiver.resumed) == (2, 1, 1)
    assert receiver.end is EndState.COMPLETE
    assert stream.listener.registered == 0


@pytest.mark.parametrize("codec", list(PayloadCodec))
async def test_the_answer_has_number_digest_and_history_of_what_was_delivered(
    stream: Stream, codec: PayloadCodec
) -> None:
    stream.register(codec, history_bytes=10_000)
    bodies = [
        encode_item({"i": 0}, codec),
        encode_error_item(backend_error(Unknown, "boom"), codec),
        encode_item("grüße", codec),
    ]
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + b"".join(map(body, bodies)) + SENTINEL)
        assert await worker.frame() is None
    async with stream.worker(2) as (worker, message):
        answer = read_answer(message, codec)
        assert (answer.resume, answer.fruitless) == (3, 0)
        assert answer.digest == xxh3_64(b"".join(bodies)).hexdigest()
        assert answer.delivered == [{"i": 0}, None, "grüße"]
        await worker.send(PROLOGUE + body(encode_final(codec)))
        assert await stream.items(1) == [{"i": 0}]
        with pytest.raises(ResponseError, match="boom"):
            await stream.receiver.next_item()
        assert await stream.rest() == ["grüße"]


async def test_a_history_that_grew_too_large_is_absent_and_the_number_is_right(
    stream: Stream,
) -> None:
    stream.register(JSON, history_bytes=100)
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item("x" * 60) * 2 + SENTINEL)
        assert await worker.frame() is None
    async with stream.worker(2) as (_, answer):
        assert said(answer) == (2, 0)
        assert answer.data == b""


async def test_items_that_the_caller_has_not_taken_count(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + item(1) + item(2) + SENTINEL)
        assert await worker.frame() is None
    async with stream.worker(2) as (worker, answer):
        assert said(answer) == (3, 0)
        await worker.send(PROLOGUE + item(3) + FINAL)
        assert await stream.rest() == [0, 1, 2, 3]


# --- workers without progress ---------------------------------------------------------------


async def test_workers_that_are_lost_without_an_item_are_counted_until_one_brings_one(
    stream: Stream,
) -> None:
    for fruitless in (0, 1, 2):
        async with stream.worker(fruitless + 1) as (worker, answer):
            assert said(answer) == (0, fruitless)
            await worker.send(PROLOGUE)
            worker.reset()
            await stream.disconnected()
    async with stream.worker(4) as (worker, answer):
        assert said(answer) == (0, 3)
        await worker.send(PROLOGUE + item(0))
        assert await stream.items(1) == [0]
        worker.reset()
        await stream.disconnected()
    async with stream.worker(5) as (_, answer):
        assert said(answer) == (1, 0)


async def test_an_orderly_hand_over_without_an_item_is_no_failure(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        worker.reset()
        await stream.disconnected()
    async with stream.worker(2) as (worker, answer):
        assert said(answer) == (0, 1)
        await worker.send(PROLOGUE + SENTINEL)
        assert await worker.frame() is None
    async with stream.worker(3) as (_, answer):
        assert said(answer) == (0, 1)


async def _replaced_while_held_back(receiver: ResponseReceiver) -> int:
    """Fill the buffer, then let two workers dial; return the items that are in it."""
    receiver.attach(SilentLine(1))
    while not receiver.held_back:
        receiver.receive_body(encode_item(0, JSON))
    receiver.attach(SilentLine(2))
    receiver.attach(last := RecordingLine(3))
    (answer,) = last.sent
    count, fruitless = said(decode(answer))
    assert fruitless == 0, "worker 2 wrote what nobody read"
    receiver.detach(last, LineEnd.LOST, "lost")
    return count


async def test_workers_that_are_lost_while_the_caller_is_slow_are_not_fruitless(
    stream: Stream,
) -> None:
    count = await _replaced_while_held_back(stream.receiver)
    async with stream.worker(4) as (_, answer):
        assert said(answer) == (count, 0)


async def test_a_loss_that_is_seen_when_the_caller_reads_again_is_not_fruitless(
    stream: Stream,
) -> None:
    count = await _replaced_while_held_back(stream.receiver)
    async with stream.worker(4) as (worker, _):
        await worker.send(PROLOGUE)
        worker.half_close()
        assert await stream.items(count) == [0] * count
        await stream.disconnected()
    for delivery, fruitless in ((5, 0), (6, 1)):
        async with stream.worker(delivery) as (worker, answer):
            assert said(answer) == (count, fruitless)
            await worker.send(PROLOGUE)
            worker.reset()
            await stream.disconnected()


# --- fencing ------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "delivery"), [(1, 3), (2, 1)])
async def test_a_newer_worker_replaces_one_that_is_connected_and_its_frames_are_dropped(
    stream: Stream, epoch: int, delivery: int
) -> None:
    async with stream.worker(2) as (older, _):
        await older.send(PROLOGUE + item(0))
        assert await stream.items(1) == [0]
        async with stream.worker(delivery, epoch) as (newer, answer):
            assert said(answer) == (1, 0)
            await older.send(item("zombie") + FINAL + SENTINEL)
            assert await older.frame() == superseded(delivery)
            assert await older.frame() is None
            await newer.send(PROLOGUE + item(1) + FINAL + SENTINEL)
            assert await stream.rest() == [1]
            assert await newer.frame() is None
    assert (stream.receiver.interruptions, stream.receiver.resumed) == (1, 1)


@pytest.mark.parametrize(("epoch", "delivery"), [(1, 2), (1, 1), (0, 9)])
async def test_an_older_worker_is_told_so_and_changes_nothing(
    stream: Stream, epoch: int, delivery: int
) -> None:
    async with stream.worker(2) as (worker, _):
        await worker.send(PROLOGUE + item(0))
        async with dialling(
            stream.address, offering(stream.receiver.subject, delivery, epoch)
        ) as zombie:
            await zombie.send(PROLOGUE + item("zombie") + FINAL)
            assert await zombie.frame() == superseded(2)
            assert await zombie.frame() is None
        await worker.send(item(1) + FINAL + SENTINEL)
        assert await stream.rest() == [0, 1]
        assert await worker.frame() is None
    assert stream.receiver.interruptions == 0


async def test_a_worker_that_was_replaced_and_writes_on_for_long_is_drained_not_reset(
    stream: Stream,
) -> None:
    async with stream.worker(1) as (older, _):
        await older.send(PROLOGUE)
        writing = asyncio.create_task(older.send(item("x" * 1000) * 5000))
        assert await stream.items(1) == ["x" * 1000]
        async with stream.worker(2) as (newer, answer):
            delivered, _ = said(answer)
            await writing
            assert await older.frame() == superseded(2)
            assert await older.frame() is None
            await newer.send(PROLOGUE + item("end") + FINAL)
            assert await stream.rest() == ["x" * 1000] * (delivered - 1) + ["end"]


async def test_a_replaced_worker_that_never_closes_is_closed_on(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.01)
    async with stream.worker(1) as (older, _), stream.worker(2):
        assert await older.frame() == superseded(2)
        while stream.listener.connections > 1:  # noqa: ASYNC110 -- it has no event for it
            await asyncio.sleep(0.001)


async def test_garbage_of_a_replaced_worker_kills_nobody(stream: Stream) -> None:
    async with stream.worker(1) as (older, _), stream.worker(2) as (newer, _):
        await older.send(b"\xff" * 24)
        assert await older.frame() == superseded(2)
        assert await older.frame() is None
        await newer.send(PROLOGUE + item(0) + FINAL)
        assert await stream.rest() == [0]


async def test_with_nobody_connected_a_worker_of_a_lower_rank_serves(stream: Stream) -> None:
    async with stream.worker(5, 9) as (worker, _):
        await worker.send(PROLOGUE + item(0) + SENTINEL)
        assert await worker.frame() is None
    async with stream.worker(1, 1) as (worker, answer):
        assert said(answer) == (1, 0)
        await worker.send(PROLOGUE + item(1) + FINAL)
        assert await stream.rest() == [0, 1]


async def test_a_full_buffer_holds_the_next_worker_back_too(stream: Stream) -> None:
    big = "x" * 400_000
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(big) * 3)
        async with stream.worker(2) as (newer, answer):
            delivered, _ = said(answer)
            assert delivered <= 3
            writing = asyncio.create_task(newer.send(PROLOGUE + item(big) * 40 + FINAL))
            for _ in range(50):
                await asyncio.sleep(0)
            assert await stream.rest() == [big] * (delivered + 40)
            await writing


# --- first deliveries ---------------------------------------------------------------------


async def test_a_fresh_worker_serves_a_new_stream_and_is_told_nothing(stream: Stream) -> None:
    async with dialling(stream.address, stream.fresh(), PROLOGUE, item(0)) as worker:
        assert await stream.items(1) == [0]
        assert (stream.receiver.delivery, stream.receiver.resumed) == (1, 0)
        await worker.send(FINAL + SENTINEL)
        assert await stream.rest() == []
        assert await worker.frame() is None, "neither an answer nor anything else"


async def test_a_stop_before_the_first_dial_is_the_first_that_a_fresh_worker_hears(
    stream: Stream,
) -> None:
    stream.receiver.stop()
    async with dialling(stream.address, stream.fresh(), PROLOGUE) as worker:
        assert await worker.frame() == STOP
        await worker.send(FINAL + SENTINEL)
        assert await stream.rest() == []


async def test_a_fresh_worker_that_is_not_the_first_is_answered_and_disturbs_nobody(
    stream: Stream,
) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0))
        assert await stream.items(1) == [0]
        async with dialling(stream.address, stream.fresh(epoch=2), PROLOGUE) as second:
            await second.send(item("twice") + item("x" * 100_000) + FINAL + SENTINEL)
            answer = await second.frame()
            assert said(answer) == (1, 0)
            assert await second.frame() is None
        await worker.send(item(1) + FINAL + SENTINEL)
        assert await stream.rest() == [1]
        assert await worker.frame() is None
    receiver = stream.receiver
    assert (receiver.delivery, receiver.interruptions, receiver.resumed) == (1, 0, 0)


async def test_a_fresh_worker_after_one_that_was_lost_without_an_item_is_not_the_first(
    stream: Stream,
) -> None:
    async with dialling(stream.address, stream.fresh(), PROLOGUE) as first:
        while not stream.receiver.connected:  # noqa: ASYNC110 -- it has no event for it
            await asyncio.sleep(0)
        first.reset()
        await stream.disconnected()
    async with dialling(stream.address, stream.fresh()) as second:
        assert said(await second.frame()) == (0, 1)
        assert await second.frame() is None
    async with stream.worker(2) as (worker, answer):
        assert said(answer) == (0, 1), "the one that was sent away is not counted"
        await worker.send(PROLOGUE + item(0) + FINAL)
        assert await stream.rest() == [0]


async def test_the_answer_to_a_fresh_worker_has_no_items(stream: Stream) -> None:
    stream.register(JSON, history_bytes=10_000)
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + SENTINEL)
        assert await worker.frame() is None
    async with dialling(stream.address, stream.fresh()) as second:
        answer = await second.frame()
        assert said(answer) == (1, 0)
        assert answer is not None
        assert answer.data == b""
    async with stream.worker(2) as (_, asked):
        assert asked.data == b"[0]"


async def test_a_fresh_worker_of_a_lower_rank_is_superseded(stream: Stream) -> None:
    async with (
        stream.worker(2),
        dialling(stream.address, stream.fresh()) as zombie,
    ):
        assert await zombie.frame() == superseded(2)
        assert await zombie.frame() is None


async def test_a_fresh_worker_is_replaced_like_any_other(stream: Stream) -> None:
    async with dialling(stream.address, stream.fresh(), PROLOGUE, item(0)) as older:
        assert await stream.items(1) == [0]
        async with stream.worker(2) as (newer, answer):
            assert said(answer) == (1, 0)
            assert await older.frame() == superseded(2)
            await newer.send(PROLOGUE + item(1) + FINAL)
            assert await stream.rest() == [1]


async def test_a_fresh_worker_of_a_spent_subject_is_reset(stream: Stream) -> None:
    fresh = stream.fresh()
    stream.receiver.kill()
    async with dialling(stream.address, fresh) as late:
        assert await late.frame() is None


# --- workers that know nothing of it --------------------------------------------------------


async def test_a_plain_worker_spends_the_subject_at_the_first_item(stream: Stream) -> None:
    plain = handshake(stream.receiver.subject)
    async with dialling(stream.address, plain, PROLOGUE, item(0)) as worker:
        assert await stream.items(1) == [0]
        assert stream.listener.registered == 0
        async with dialling(stream.address, offering(stream.receiver.subject, 9)) as late:
            assert await late.frame() is None
        worker.reset()
        with pytest.raises(StreamInterrupted, match="after 1 items"):
            await stream.receiver.next_item()


async def test_a_plain_workers_sentinel_without_final_interrupts_at_once(stream: Stream) -> None:
    plain = handshake(stream.receiver.subject)
    async with dialling(stream.address, plain, PROLOGUE, SENTINEL):
        with pytest.raises(StreamInterrupted, match="ended it without a final"):
            await stream.receiver.next_item()


async def test_before_the_first_item_the_newest_dial_wins_whoever_it_is(stream: Stream) -> None:
    plain = handshake(stream.receiver.subject)
    async with dialling(stream.address, plain) as first:
        while not stream.receiver.connected:  # noqa: ASYNC110 -- it has no event for it
            await asyncio.sleep(0)
        async with stream.worker(1) as (second, answer):
            assert said(answer) == (0, 1)
            assert await first.frame() is None
            async with dialling(stream.address, plain, PROLOGUE, item(0), FINAL):
                assert await second.frame() == superseded(0)
                assert await second.frame() is None
                assert await stream.rest() == [0]


async def test_a_plain_worker_cannot_go_on_with_a_stream(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + SENTINEL)
        assert await worker.frame() is None
    async with dialling(stream.address, handshake(stream.receiver.subject)) as plain:
        assert await plain.frame() is None
    assert stream.receiver.end is None


# --- the end ------------------------------------------------------------------------------


async def test_no_other_worker_within_the_limit_interrupts_the_stream(stream: Stream) -> None:
    stream.register(JSON, timeout=0.01)
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + item(1))
        assert await stream.items(2) == [0, 1]
        worker.reset()
        with pytest.raises(StreamInterrupted, match=r"no other worker came within 0\.01 s") as got:
            await stream.receiver.next_item()
    assert got.value.items == 2
    assert stream.receiver.end is EndState.BROKEN
    assert stream.listener.registered == 0


async def test_before_the_first_item_the_callers_timeout_is_the_only_limit(
    stream: Stream,
) -> None:
    stream.register(JSON, timeout=0.001)
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + SENTINEL)
        assert await worker.frame() is None
    await asyncio.sleep(0.01)
    assert stream.receiver.end is None


class SilentLine:
    """A worker's connection that is only there."""

    def __init__(self, delivery: int = 1) -> None:
        self.offer: ResumeOffer | None = ResumeOffer(delivery, 1)

    def send(self, frame: bytes) -> None:
        """Written nowhere."""

    def hold_back(self, value: bool) -> None:
        """Nothing is read."""

    def close_later(self) -> None:
        """Nothing to close."""

    def discard(self) -> None:
        """Nothing to reset."""

    def dismiss(self, delivery: int) -> None:
        """Nobody to tell."""


class RecordingLine(SilentLine):
    """A worker's connection that keeps what it is told."""

    def __init__(self, delivery: int = 1) -> None:
        super().__init__(delivery)
        self.sent: list[bytes] = []

    @override
    def send(self, frame: bytes) -> None:
        self.sent.append(frame)


class BrokenLine(SilentLine):
    """A worker's connection that fails when it is let go."""

    def __init__(self, newer: RecordingLine) -> None:
        super().__init__()
        self._newer = newer
        self.told_first: list[bytes] = []

    @override
    def dismiss(self, delivery: int) -> None:
        self.told_first = list(self._newer.sent)
        raise OSError(107, "Transport endpoint is not connected")


async def test_a_newer_worker_is_answered_before_the_older_one_is_let_go(stream: Stream) -> None:
    receiver, newer = stream.receiver, RecordingLine(2)
    older = BrokenLine(newer)
    receiver.attach(older)
    with pytest.raises(OSError, match="not connected"):
        receiver.attach(newer)
    (answer,) = older.told_first
    assert said(decode(answer)) == (0, 1)
    receiver.receive_body(encode_item(0, JSON))
    assert await stream.items(1) == [0]


async def test_the_limit_is_for_the_next_dial_not_for_its_first_item(stream: Stream) -> None:
    receiver = stream.register(JSON, timeout=0.001)
    first, second = SilentLine(), SilentLine()
    receiver.attach(first)
    receiver.receive_body(encode_item(0, JSON))
    receiver.detach(first, LineEnd.SENTINEL, "handed over")
    receiver.attach(second)
    await asyncio.sleep(0.01)
    assert receiver.end is None
    receiver.detach(second, LineEnd.LOST, "lost")
    assert await stream.items(1) == [0]
    with pytest.raises(StreamInterrupted):
        await receiver.next_item()


async def test_a_worker_that_breaks_the_protocol_ends_the_stream(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + encode(b'"go"'))
        assert await stream.items(1) == [0]
        with pytest.raises(StreamInterrupted, match="broke the protocol"):
            await stream.receiver.next_item()
        assert await worker.frame() == KILL
        assert await worker.frame() is None
    assert stream.listener.registered == 0


ERROR = body(encode_error_item(backend_error(Unknown, "boom"), JSON))


@pytest.mark.parametrize("how", ["reset", "half_close", "sentinel"])
async def test_a_worker_lost_between_its_error_item_and_the_final_has_completed_the_stream(
    stream: Stream, how: str
) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + ERROR)
        assert await stream.items(1) == [0]
        with pytest.raises(ResponseError, match="boom"):
            await stream.receiver.next_item()
        assert stream.receiver.end is None
        if how == "sentinel":
            await worker.send(SENTINEL)
        else:
            getattr(worker, how)()
        assert await stream.rest() == []
    assert stream.receiver.end is EndState.COMPLETE
    assert stream.interruptions == []
    async with dialling(stream.address, offering(stream.receiver.subject, 2)) as late:
        assert await late.frame() is None


async def test_a_worker_that_dials_after_anothers_error_item_is_reset(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + ERROR)
        assert await stream.items(1) == [0]
        with pytest.raises(ResponseError, match="boom"):
            await stream.receiver.next_item()
        async with dialling(stream.address, offering(stream.receiver.subject, 2)) as newer:
            assert await newer.frame() is None
        assert await stream.rest() == []
        await worker.send(FINAL + SENTINEL)
        assert await worker.frame() is None, "closed in order"
    assert stream.receiver.end is EndState.COMPLETE
    assert stream.interruptions == []


async def test_garbage_behind_an_error_item_proves_nothing_complete(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + ERROR + encode(b'"go"'))
        with pytest.raises(ResponseError, match="boom"):
            await stream.receiver.next_item()
        with pytest.raises(StreamInterrupted, match="broke the protocol"):
            await stream.receiver.next_item()


async def test_a_stream_that_nobody_can_go_on_with_is_interrupted_at_once(stream: Stream) -> None:
    receiver = stream.receiver
    async with stream.worker(1, unable=True) as (worker, _):
        await worker.send(PROLOGUE + item(0))
        assert await stream.items(1) == [0]
        worker.reset()
        with pytest.raises(StreamInterrupted) as caught:
            await receiver.next_item()
    assert caught.value.items == 1
    assert stream.listener.registered == 0


async def test_before_its_first_item_it_waits_for_another_worker(stream: Stream) -> None:
    async with stream.worker(1, unable=True) as (worker, _):
        await worker.send(PROLOGUE)
        worker.reset()
        await stream.disconnected()
    async with stream.worker(2, unable=True) as (worker, answer):
        assert said(answer) == (0, 1)
        await worker.send(PROLOGUE + item(0) + FINAL + SENTINEL)
        assert await stream.rest() == [0]


async def test_a_refusal_is_final_for_a_resumed_stream_too(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + SENTINEL)
        assert await worker.frame() is None
    async with stream.worker(2) as (worker, _):
        await worker.send(encode(b'{"error":"no"}') + SENTINEL)
        assert await stream.items(1) == [0]
        with pytest.raises(EngineRefusedError):
            await stream.receiver.next_item()


@pytest.mark.parametrize("codec", list(PayloadCodec))
async def test_a_worker_that_cannot_go_on_says_so_and_the_caller_hears_how_many_there_were(
    stream: Stream, codec: PayloadCodec
) -> None:
    stream.register(codec)
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + body(encode_item(0, codec)) * 2 + SENTINEL)
        assert await worker.frame() is None
    refusal = encode_error_item(interrupted_error("the engine cannot resume"), codec)
    async with stream.worker(2) as (worker, _):
        await worker.send(PROLOGUE + body(refusal) + body(encode_final(codec)) + SENTINEL)
        assert await stream.items(2) == [0, 0]
        with pytest.raises(StreamInterrupted, match="the engine cannot resume") as caught:
            await stream.receiver.next_item()
        assert await worker.frame() is None, "closed in order: the worker's request is settled"
    assert caught.value.items == 2
    assert stream.receiver.end is EndState.BROKEN


async def test_a_worker_that_says_so_and_stays_is_closed_on(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.transport.incoming._CLOSE_TIMEOUT", 0.01)
    refusal = encode_error_item(interrupted_error("no"), JSON)
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + body(refusal) + item("late"))
        with pytest.raises(StreamInterrupted):
            await stream.receiver.next_item()
        assert await worker.frame() is None


# --- stop and kill --------------------------------------------------------------------------


async def test_a_stop_before_the_first_dial_goes_to_the_worker_behind_the_answer(
    stream: Stream,
) -> None:
    stream.receiver.stop()
    assert stream.receiver.end is None
    async with stream.worker(1) as (worker, answer):
        assert said(answer) == (0, 0)
        assert await worker.frame() == STOP
        await worker.send(PROLOGUE + item(0) + FINAL + SENTINEL)
        assert await stream.rest() == [0]
        assert await worker.frame() is None
    assert stream.receiver.end is EndState.COMPLETE


@pytest.mark.parametrize("items", [[], [0, 1]])
async def test_a_stop_with_the_worker_lost_ends_the_stream_at_once(
    stream: Stream, items: list[int]
) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + b"".join(map(item, items)) + SENTINEL)
        assert await worker.frame() is None
    stream.receiver.stop()
    assert stream.receiver.end is EndState.CANCELLED
    assert stream.listener.registered == 0
    assert await stream.rest() == items


async def test_a_stop_that_a_replaced_worker_heard_is_said_to_the_newer_one(
    stream: Stream,
) -> None:
    async with stream.worker(1) as (older, _):
        stream.receiver.stop()
        assert await older.frame() == STOP
        async with stream.worker(2) as (newer, answer):
            assert said(answer) == (0, 1)
            assert await newer.frame() == STOP
            await newer.send(PROLOGUE + FINAL)
            assert await stream.rest() == []
    assert stream.receiver.end is EndState.COMPLETE


async def test_a_worker_that_is_lost_after_the_stop_is_not_replaced(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0))
        assert await stream.items(1) == [0]
        stream.receiver.stop()
        assert await worker.frame() == STOP
        worker.reset()
        assert await stream.rest() == []
    assert stream.receiver.end is EndState.CANCELLED
    assert stream.listener.registered == 0


async def test_a_kill_with_nobody_connected_spends_the_subject(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + SENTINEL)
        assert await worker.frame() is None
    stream.receiver.kill()
    assert stream.listener.registered == 0
    async with dialling(stream.address, offering(stream.receiver.subject, 2)) as late:
        assert await late.frame() is None
    assert await stream.rest() == [0]


async def test_an_interrupted_stream_kills_its_worker_and_keeps_what_has_arrived(
    stream: Stream,
) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0) + item(1))
        assert await stream.items(1) == [0]
        stream.receiver.interrupt("enough")
        assert await worker.frame() == KILL
        assert await worker.frame() is None
    assert await stream.items(1) == [1]
    with pytest.raises(StreamInterrupted, match="after 2 items: enough"):
        await stream.receiver.next_item()
    assert stream.receiver.end is EndState.BROKEN
    stream.receiver.interrupt("again")


async def test_a_stopped_stream_that_is_interrupted_ends_quietly(stream: Stream) -> None:
    stream.receiver.stop()
    stream.receiver.interrupt("enough")
    assert await stream.rest() == []
    assert stream.receiver.end is EndState.CANCELLED


# --- what the caller is told ------------------------------------------------------------------


async def test_every_interruption_is_told_with_what_was_seen(stream: Stream) -> None:
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + item(0))
        assert await stream.items(1) == [0]
        worker.half_close()
        await stream.disconnected()
    async with stream.worker(2) as (worker, _), stream.worker(3) as (newest, _):
        await newest.send(PROLOGUE + item(1) + SENTINEL)
        assert await newest.frame() is None
    closed, replaced, handed_over = stream.interruptions
    assert closed == Interruption(
        delivery=1, items=1, handed_over=False, reason="the worker closed the connection"
    )
    assert replaced == Interruption(
        delivery=2, items=1, handed_over=False, reason="a newer worker dialled"
    )
    assert handed_over == Interruption(
        delivery=3, items=2, handed_over=True, reason="the worker ended it without a final"
    )
    assert stream.receiver.interruptions == 3


async def test_a_worker_that_died_unseen_while_the_caller_was_slow_is_replaced(
    stream: Stream,
) -> None:
    receiver = stream.receiver
    async with stream.worker(1) as (worker, _):
        await worker.send(PROLOGUE + b"".join(map(item, range(100))))
        while not receiver.held_back:  # noqa: ASYNC110 -- the receiver has no event for it
            await asyncio.sleep(0)
    # Closed with nobody to read: the next byte that is sent there brings a reset.
    async with stream.worker(2) as (newer, answer):
        delivered, fruitless = said(answer)
        assert fruitless == 0
        rest = b"".join(map(item, range(delivered, 200)))
        await newer.send(PROLOGUE + rest + FINAL + SENTINEL)
        assert await stream.rest() == list(range(200))
        assert await newer.frame() is None
    assert [one.reason for one in stream.interruptions] == ["a newer worker dialled"]
    assert (receiver.end, receiver.resumed) == (EndState.COMPLETE, 1)


@pytest.mark.parametrize(
    "test",
    [
        test_a_worker_that_was_replaced_and_writes_on_for_long_is_drained_not_reset,
        test_a_worker_that_died_unseen_while_the_caller_was_slow_is_replaced,
    ],
)
def test_it_is_the_same_under_uvloop(test: Callable[[Stream], Awaitable[None]]) -> None:
    async def main() -> None:
        listener = ResponseListener()
        stream = Stream(listener, await listener.start())
        await test(stream)
        await listener.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
