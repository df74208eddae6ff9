"""The worker's end of a resumable stream: it announces itself and hears what is there."""

import asyncio

import pytest

from dialback.errors import ProtocolError, PublishError, StreamSupersededError
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.items import encode_final, encode_item
from dialback.transport.messages import PayloadCodec, ResumeAnswer, ResumeOffer
from dialback.transport.response_stream import WorkerEvent
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import PREFIX, TwoPartMessage, encode
from support.kept_connections import Heard
from support.scripted_requester import KILL, STOP, CallHome, ScriptedRequester

JSON = PayloadCodec.JSON
OFFER = ResumeOffer(delivery=3, epoch=1_700_000_000_000_000_000)
HANDSHAKE = TwoPartMessage(
    b'{"subject":"s","stream_type":"response","resume":1,"delivery":3,"epoch":1700000000000000000}'
)
FRESH = ResumeOffer(delivery=1, epoch=5, fresh=True)
FRESH_HANDSHAKE = TwoPartMessage(
    b'{"subject":"s","stream_type":"response","resume":1,"delivery":1,"epoch":5,"fresh":1}'
)
ANSWER = encode(b'{"resume":2,"fruitless":1}')
SUPERSEDED = encode(b'{"superseded":4}')
PATIENT = 60.0


async def _dialled(
    requester: ScriptedRequester, offer: ResumeOffer
) -> tuple[ResponseSender, CallHome]:
    dialer = Dialer(CallHomePolicy(), DialSettings(attempts=1, linger=PATIENT))
    sender = await dialer.dial(Address("127.0.0.1", requester.port), "s", offer=offer)
    return sender, await requester.connection()


async def _offered(requester: ScriptedRequester) -> tuple[ResponseSender, CallHome]:
    sender, home = await _dialled(requester, OFFER)
    assert await home.frame() == HANDSHAKE
    return sender, home


async def _fresh(requester: ScriptedRequester) -> tuple[ResponseSender, CallHome]:
    sender, home = await _dialled(requester, FRESH)
    sender.connection.flush()  # it would leave with what the engine says
    assert await home.frame() == FRESH_HANDSHAKE
    return sender, home


async def _close(sender: ResponseSender) -> None:
    sender.abort()
    assert await sender.connection.wait_closed(10)


class Unconnected(ResponseSender):
    """A sender that has announced itself, without a socket: every cut is one read."""

    def __init__(self, offer: ResumeOffer = OFFER) -> None:
        super().__init__()
        self._end.handshake("s", offer)


# --- the answer ---------------------------------------------------------------------------


async def test_the_answer_says_what_the_requester_has_and_the_stream_begins(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _offered(requester)
    await home.send(ANSWER)
    answer = await sender.resume_answer(PATIENT, JSON)
    assert answer == ResumeAnswer(resume=2, fruitless=1)
    sender.write_prologue()
    assert await home.frame() == TwoPartMessage(b'{"error":null}')
    await _close(sender)


@pytest.mark.parametrize("cut", range(len(ANSWER) + 1))
async def test_an_answer_is_read_at_any_cut(cut: int) -> None:
    sender = Unconnected()
    sender.connection.data_received(ANSWER[:cut])
    sender.connection.data_received(ANSWER[cut:] + STOP)
    assert await sender.resume_answer(PATIENT, JSON) == ResumeAnswer(resume=2, fruitless=1)
    assert sender.stopped


@pytest.mark.parametrize(
    ("codec", "data"), [(JSON, b'["a",{"b":1}]'), (PayloadCodec.MSGPACK, b"\x92\xa1a\x81\xa1b\x01")]
)
async def test_the_delivered_items_come_in_the_streams_codec(
    requester: ScriptedRequester, codec: PayloadCodec, data: bytes
) -> None:
    sender, home = await _offered(requester)
    await home.send(encode(b'{"resume":2,"fruitless":0}', data))
    assert (await sender.resume_answer(PATIENT, codec)).delivered == ["a", {"b": 1}]
    await _close(sender)


async def test_a_large_data_part_is_allowed_while_the_answer_is_waited_for_and_no_longer(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _offered(requester)
    large = b'["' + b"x" * 1_000_000 + b'"]'
    await home.send(encode(b'{"resume":1,"fruitless":0}', large))
    answer = await sender.resume_answer(PATIENT, JSON)
    assert answer.delivered == ["x" * 1_000_000]
    heard = Heard(sender)
    await home.send(PREFIX.pack(0, 65537, 0))
    assert await heard.first() is WorkerEvent.VIOLATION
    await _close(sender)


async def test_a_header_over_64_kib_is_a_violation_while_the_answer_is_waited_for_too(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _offered(requester)
    await home.send(PREFIX.pack(65537, 0, 0))
    with pytest.raises(PublishError):
        await sender.resume_answer(PATIENT, JSON)
    assert sender.killed
    await _close(sender)


@pytest.mark.parametrize("frames", [STOP + ANSWER, ANSWER + STOP])
async def test_a_stop_before_or_behind_the_answer_is_heard(
    requester: ScriptedRequester, frames: bytes
) -> None:
    sender, home = await _offered(requester)
    await home.send(frames)
    assert (await sender.resume_answer(PATIENT, JSON)).resume == 2
    assert await Heard(sender).first() is WorkerEvent.STOP
    sender.write_prologue()
    sender.write_final(encode_final(JSON))
    await _close(sender)


# --- none ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
async def test_a_reset_or_a_fin_instead_means_that_the_stream_is_over(
    requester: ScriptedRequester, how: str
) -> None:
    sender, home = await _offered(requester)
    match how:
        case "reset":
            home.reset()
        case "close":
            await home.close()
        case _:
            home.half_close()
    with pytest.raises(PublishError) as caught:
        await sender.resume_answer(PATIENT, JSON)
    assert caught.value.client_gone
    await _close(sender)


async def test_a_kill_instead_means_that_the_stream_is_over(requester: ScriptedRequester) -> None:
    sender, home = await _offered(requester)
    await home.send(KILL)
    with pytest.raises(PublishError) as caught:
        await sender.resume_answer(PATIENT, JSON)
    assert caught.value.client_gone
    assert sender.killed
    await _close(sender)


async def test_a_requester_that_does_not_answer_is_not_gone(requester: ScriptedRequester) -> None:
    sender, _ = await _offered(requester)
    with pytest.raises(PublishError, match="did not answer") as caught:
        await sender.resume_answer(0.01, JSON)
    assert not caught.value.client_gone
    await _close(sender)


async def test_delivered_items_that_cannot_be_read_are_no_answer(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _offered(requester)
    await home.send(encode(b'{"resume":2,"fruitless":0}', b"[1]"))
    with pytest.raises(PublishError, match="an answer for 2 items came with 1") as caught:
        await sender.resume_answer(PATIENT, JSON)
    assert not caught.value.client_gone
    await _close(sender)


@pytest.mark.parametrize("frame", [encode(b'{"resume":1}'), encode(b"", b"x"), encode(b'"go"')])
async def test_any_other_frame_is_a_violation(requester: ScriptedRequester, frame: bytes) -> None:
    sender, home = await _offered(requester)
    await home.send(frame)
    with pytest.raises(PublishError) as caught:
        await sender.resume_answer(PATIENT, JSON)
    assert caught.value.client_gone
    assert sender.killed
    await _close(sender)


async def test_a_worker_that_announced_nothing_takes_either_frame_as_a_violation(
    requester: ScriptedRequester,
) -> None:
    for frame in (ANSWER, SUPERSEDED):
        sender = await Dialer(CallHomePolicy()).dial(Address("127.0.0.1", requester.port), "s")
        home = await requester.connection()
        assert await home.frame() == TwoPartMessage(b'{"subject":"s","stream_type":"response"}')
        heard = Heard(sender)
        await home.send(frame)
        assert await heard.first() is WorkerEvent.VIOLATION
        assert (sender.killed, sender.superseded) == (True, False)
        await _close(sender)


async def test_a_second_answer_is_a_violation(requester: ScriptedRequester) -> None:
    sender, home = await _offered(requester)
    await home.send(ANSWER)
    await sender.resume_answer(PATIENT, JSON)
    heard = Heard(sender)
    await home.send(ANSWER)
    assert await heard.first() is WorkerEvent.VIOLATION
    await _close(sender)


# --- superseded ---------------------------------------------------------------------------


async def test_superseded_instead_of_an_answer_names_the_newer_delivery(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _offered(requester)
    await home.send(SUPERSEDED)
    with pytest.raises(StreamSupersededError, match="delivery 4") as caught:
        await sender.resume_answer(PATIENT, JSON)
    assert caught.value.delivery == 4
    assert sender.superseded
    await _close(sender)


@pytest.mark.parametrize("part", ["open", "streaming", "stopping", "finishing"])
async def test_superseded_at_any_time_ends_the_stream_and_is_no_kill(
    requester: ScriptedRequester, part: str
) -> None:
    sender, home = await _offered(requester)
    await home.send(ANSWER)
    await sender.resume_answer(PATIENT, JSON)
    heard = Heard(sender)
    if part != "open":
        sender.write_prologue()
    if part == "stopping":
        await home.send(STOP)
        assert await heard.first() is WorkerEvent.STOP
    if part == "finishing":
        sender.write_final(encode_final(JSON))
    heard.forget()
    await home.send(SUPERSEDED)
    assert await heard.first() is WorkerEvent.SUPERSEDED
    assert (sender.superseded, sender.killed) == (True, False)
    with pytest.raises(ProtocolError):
        sender.write_item(encode_item(1, JSON))
    assert await Heard(sender).first() is WorkerEvent.SUPERSEDED, "past ones are told too"
    await _close(sender)


async def test_superseded_while_the_worker_waits_for_the_fin_is_told_before_the_close(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _offered(requester)
    await home.send(ANSWER)
    await sender.resume_answer(PATIENT, JSON)
    heard = Heard(sender)
    sender.write_prologue()
    sender.write_final(encode_final(JSON))
    finishing = asyncio.create_task(sender.finish())
    await home.frames()
    await home.send(SUPERSEDED)
    await home.close()
    await finishing
    assert heard.events == [WorkerEvent.SUPERSEDED]
    assert sender.superseded
    assert await sender.connection.wait_closed(10)


async def test_a_hand_over_is_a_sentinel_without_final_and_the_requesters_fin(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _offered(requester)
    await home.send(ANSWER)
    await sender.resume_answer(PATIENT, JSON)
    sender.write_prologue()
    sender.write_item(encode_item(1, JSON))
    finishing = asyncio.create_task(sender.finish())
    kinds = [frame.kind for frame in await home.frames()]
    assert kinds == ["header-only", "data-only", "header-only"]
    assert not sender.peer_closed
    await home.close()
    await finishing
    assert sender.peer_closed
    assert await sender.connection.wait_closed(10)


# --- fresh --------------------------------------------------------------------------------


async def test_a_fresh_worker_writes_without_an_answer(requester: ScriptedRequester) -> None:
    sender, home = await _fresh(requester)
    assert sender.fresh
    sender.write_prologue()
    assert await home.frame() == TwoPartMessage(b'{"error":null}')
    await _close(sender)


@pytest.mark.parametrize("part", ["open", "streaming", "stopping", "finishing"])
async def test_an_answer_to_a_fresh_worker_ends_its_stream_and_is_no_kill(
    requester: ScriptedRequester, part: str
) -> None:
    sender, home = await _fresh(requester)
    heard = Heard(sender)
    if part != "open":
        sender.write_prologue()
    if part == "stopping":
        await home.send(STOP)
        assert await heard.first() is WorkerEvent.STOP
    if part == "finishing":
        sender.write_final(encode_final(JSON))
    heard.forget()
    await home.send(ANSWER + KILL)
    assert await heard.first() is WorkerEvent.ANSWER
    assert (sender.not_first, sender.superseded) == (True, False)
    with pytest.raises(ProtocolError):
        sender.write_item(encode_item(1, JSON))
    assert await Heard(sender).first() is WorkerEvent.ANSWER, "past ones are told too"
    await _close(sender)


async def test_a_fresh_worker_that_waits_for_the_fin_hears_the_answer_before_the_close(
    requester: ScriptedRequester,
) -> None:
    sender, home = await _fresh(requester)
    heard = Heard(sender)
    sender.write_prologue()
    sender.write_final(encode_final(JSON))
    finishing = asyncio.create_task(sender.finish())
    await home.frames()
    await home.send(ANSWER)
    await home.close()
    await finishing
    assert heard.events == [WorkerEvent.ANSWER]
    assert await sender.connection.wait_closed(10)


@pytest.mark.parametrize("cut", range(len(ANSWER) + 1))
async def test_an_answer_to_a_fresh_worker_is_read_at_any_cut(cut: int) -> None:
    sender = Unconnected(FRESH)
    heard = Heard(sender)
    sender.connection.data_received(ANSWER[:cut])
    sender.connection.data_received(ANSWER[cut:] + ANSWER + SUPERSEDED)
    assert heard.events == [WorkerEvent.ANSWER]
    assert (sender.not_first, sender.superseded, sender.killed) == (True, False, False)


async def test_a_fresh_worker_is_told_that_it_is_superseded_and_to_stop_like_any_other() -> None:
    sender = Unconnected(FRESH)
    heard = Heard(sender)
    sender.connection.data_received(STOP + SUPERSEDED + ANSWER)
    assert heard.events == [WorkerEvent.STOP, WorkerEvent.SUPERSEDED]
    assert not sender.not_first


async def test_a_fresh_worker_reads_no_large_data_part(requester: ScriptedRequester) -> None:
    sender, home = await _fresh(requester)
    await home.send(PREFIX.pack(26, 65537, 0))
    assert await Heard(sender).first() is WorkerEvent.VIOLATION
    await _close(sender)
