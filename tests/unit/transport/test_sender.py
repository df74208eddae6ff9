import asyncio

import pytest
from typing_extensions import override

from dialback.errors import ProtocolError, PublishError
from dialback.transport.items import encode_error_item, encode_final, encode_item
from dialback.transport.messages import PayloadCodec, ResponseStreamPrologue, decode_item
from dialback.transport.response_stream import WorkerEvent
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import TwoPartMessage, encode
from support.captures import CAPTURES, Capture
from support.scripted_requester import KILL, STOP, CallHome, ScriptedRequester, items_of

FINAL = encode_final(PayloadCodec.JSON)
SENTINEL = TwoPartMessage(b'"sentinel"')
GARBAGE = b"\xff" * 24
KILLING = [
    KILL,
    encode(b'"sentinel"'),
    encode(b'"go"'),
    encode(b'"\xff"'),
    encode(b'{"more":' + b"[" * 5000),
    encode(b'"stop"', b"x"),
    encode(b"", b"data"),
    GARBAGE,
]


class WatchedSender(ResponseSender):
    """A sender whose test can wait for the requester's FIN."""

    def __init__(self, *, send_timeout: float, linger: float) -> None:
        super().__init__(send_timeout=send_timeout, linger=linger)
        self.fin_seen = asyncio.Event()

    @override
    def peer_finished(self) -> None:
        super().peer_finished()
        self.fin_seen.set()


class Events:
    """What a listener was told."""

    def __init__(self, sender: ResponseSender) -> None:
        self.seen: list[WorkerEvent] = []
        self._told = asyncio.Event()
        sender.on_event(self._hear)

    def _hear(self, event: WorkerEvent) -> None:
        self.seen.append(event)
        self._told.set()

    async def next(self) -> list[WorkerEvent]:
        await self._told.wait()
        self._told.clear()
        return self.seen


def _item(value: object) -> bytes:
    return encode_item(value, PayloadCodec.JSON)


async def _connect(
    requester: ScriptedRequester, *, send_timeout: float = 60.0, linger: float = 60.0
) -> tuple[WatchedSender, CallHome]:
    """A sender that has shaken hands, and the requester's end."""
    sender = WatchedSender(send_timeout=send_timeout, linger=linger)
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: sender.connection, "127.0.0.1", requester.port)
    sender.send_handshake("subject-1")
    peer = await requester.connection()
    handshake = TwoPartMessage(b'{"subject":"subject-1","stream_type":"response"}')
    assert await peer.frame() == handshake
    return sender, peer


async def _streaming(
    requester: ScriptedRequester, *, send_timeout: float = 60.0, linger: float = 60.0
) -> tuple[WatchedSender, CallHome]:
    sender, peer = await _connect(requester, send_timeout=send_timeout, linger=linger)
    sender.write_prologue()
    assert await peer.frame() == TwoPartMessage(b'{"error":null}')
    return sender, peer


async def _close(sender: ResponseSender) -> None:
    sender.abort()
    assert await sender.connection.wait_closed(10)


# --- golden bytes -------------------------------------------------------------------------

NEW_ERRORS = [
    captured
    for captured in CAPTURES
    if captured.scenario != "stop"
    and not (captured.release == "1.3.1" and captured.scenario.startswith("raise"))
]


@pytest.mark.parametrize("captured", NEW_ERRORS, ids=str)
async def test_a_stream_on_the_wire_is_what_a_real_worker_writes(
    requester: ScriptedRequester, captured: Capture
) -> None:
    sender = ResponseSender()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: sender.connection, "127.0.0.1", requester.port)
    sender.send_handshake(captured.frames[0].header.decode().split('"')[3])
    peer = await requester.connection()
    sender.write_prologue()
    for body in captured.bodies[:-1]:
        item = decode_item(body, captured.codec).data
        assert item is not None
        if item.error is not None:
            sender.write_item(encode_error_item(item.error, captured.codec))
        else:
            sender.write_item(encode_item(item.data, captured.codec))
    sender.write_final(encode_final(captured.codec))
    finishing = asyncio.create_task(sender.finish())
    await peer.frames()
    await peer.close()
    await finishing
    assert bytes(peer.received) == captured.worker_bytes


async def test_a_refusal_is_an_error_prologue_and_the_sentinel(
    requester: ScriptedRequester,
) -> None:
    sender, peer = await _connect(requester)
    sender.write_refusal(ResponseStreamPrologue("Generate Error: boom"))
    finishing = asyncio.create_task(sender.finish())
    assert await peer.frames() == [TwoPartMessage(b'{"error":"Generate Error: boom"}'), SENTINEL]
    await peer.close()
    await finishing


# --- writing ------------------------------------------------------------------------------


async def test_items_arrive_in_the_order_written_whatever_is_awaited(
    requester: ScriptedRequester,
) -> None:
    sender, peer = await _streaming(requester)
    for number in range(500):
        sender.write_item(_item(number))
        if sender.connection.breath_due:
            await sender.breathe()
    sender.write_final(FINAL)
    finishing = asyncio.create_task(sender.finish())
    frames = await peer.frames()
    await peer.close()
    await finishing
    assert [item["data"]["data"] for item in items_of(frames)[:-1]] == list(range(500))


async def test_a_writer_that_never_awaits_hears_stop_through_breathe(
    requester: ScriptedRequester,
) -> None:
    sender, peer = await _streaming(requester)
    await peer.send(STOP)
    written = 0
    while not sender.stopped:
        sender.write_item(_item(written))
        written += 1
        if sender.connection.breath_due:
            await sender.breathe()
    assert written >= 1
    assert not sender.killed
    await _close(sender)


async def test_breathe_waits_for_a_requester_that_reads_slowly(
    requester: ScriptedRequester,
) -> None:
    sender, peer = await _streaming(requester)
    item = _item("x" * 1_000_000)
    written = 0
    while not sender.connection.congested:
        sender.write_item(item)
        written += 1
        await asyncio.sleep(0)
    assert sender.connection.breath_due
    waiting = asyncio.create_task(sender.breathe())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(written):
        await peer.frame()
    await waiting
    assert not sender.connection.breath_due
    await _close(sender)


async def test_a_requester_that_takes_nothing_for_send_timeout_is_a_failed_network(
    requester: ScriptedRequester,
) -> None:
    sender, _ = await _streaming(requester, send_timeout=0.05)
    events = Events(sender)
    while not sender.connection.congested:
        sender.write_item(_item("x" * 1_000_000))
        await asyncio.sleep(0)
    with pytest.raises(PublishError) as caught:
        await sender.breathe()
    assert not caught.value.client_gone
    assert await events.next() == [WorkerEvent.LOST]
    assert sender.lost is caught.value
    for write in (sender.write_item, sender.write_final):
        with pytest.raises(PublishError) as again:
            write(b"x")
        assert again.value is caught.value
    with pytest.raises(PublishError):
        await sender.finish()


# --- stop, kill, violations, loss ---------------------------------------------------------


async def test_after_a_stop_items_and_the_final_are_still_written(
    requester: ScriptedRequester,
) -> None:
    sender, peer = await _streaming(requester)
    events = Events(sender)
    await peer.send(STOP)
    assert await events.next() == [WorkerEvent.STOP]
    assert (sender.stopped, sender.killed) == (True, False)
    sender.write_item(_item(1))
    sender.write_final(FINAL)
    finishing = asyncio.create_task(sender.finish())
    assert [frame.data for frame in await peer.frames()] == [_item(1), FINAL, b""]
    await peer.close()
    await finishing
    assert sender.lost is None


@pytest.mark.parametrize("frame", KILLING, ids=lambda frame: repr(frame[16:40]))
async def test_a_kill_and_whatever_is_no_stop_kill(
    requester: ScriptedRequester, frame: bytes
) -> None:
    sender, peer = await _streaming(requester)
    events = Events(sender)
    await peer.send(frame)
    (event,) = await events.next()
    assert event is (WorkerEvent.KILL if frame == KILL else WorkerEvent.VIOLATION)
    assert (sender.stopped, sender.killed) == (True, True)
    with pytest.raises(ProtocolError, match="cannot write item while aborted"):
        sender.write_item(_item(1))
    await peer.close()
    await sender.finish()  # writes nothing more, waits for the requester's close
    assert bytes(peer.received).endswith(b'{"error":null}')


async def test_a_stop_and_then_a_kill_are_both_told(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester)
    events = Events(sender)
    await peer.send(STOP)
    await events.next()
    await peer.send(KILL)
    assert await events.next() == [WorkerEvent.STOP, WorkerEvent.KILL]
    await _close(sender)


async def test_a_stop_before_the_prologue_is_heard(requester: ScriptedRequester) -> None:
    sender, peer = await _connect(requester)
    events = Events(sender)
    await peer.send(STOP)
    assert await events.next() == [WorkerEvent.STOP]
    sender.write_prologue()
    sender.write_final(FINAL)
    finishing = asyncio.create_task(sender.finish())
    assert len(await peer.frames()) == 3
    await peer.close()
    await finishing


async def test_an_empty_frame_is_ignored(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester)
    events = Events(sender)
    await peer.send(encode() + STOP)
    assert await events.next() == [WorkerEvent.STOP]
    await _close(sender)


@pytest.mark.parametrize(
    ("frames", "told"),
    [(STOP, [WorkerEvent.STOP]), (STOP + KILL, [WorkerEvent.KILL]), (KILL, [WorkerEvent.KILL])],
    ids=["stop", "stop and kill", "kill"],
)
async def test_a_late_listener_is_told_what_has_happened(
    requester: ScriptedRequester, frames: bytes, told: list[WorkerEvent]
) -> None:
    sender, peer = await _streaming(requester)
    early = Events(sender)
    await peer.send(frames)
    await early.next()
    assert Events(sender).seen == told
    early = Events(sender)
    await early.next()
    peer.reset()
    assert await early.next() == [*told, WorkerEvent.LOST]
    assert Events(sender).seen == [*told, WorkerEvent.LOST]


async def test_a_reset_means_that_the_client_is_gone(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester)
    events = Events(sender)
    peer.reset()
    assert await events.next() == [WorkerEvent.LOST]
    assert sender.lost is not None
    assert sender.lost.client_gone
    with pytest.raises(PublishError) as caught:
        sender.write_item(_item(1))
    assert caught.value is sender.lost


async def test_a_requester_that_half_closes_gets_everything(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester)
    peer.half_close()
    await sender.fin_seen.wait()
    sender.write_item(_item(1))
    sender.write_final(FINAL)
    await sender.finish()
    assert [frame.data for frame in await peer.frames()] == [_item(1), FINAL, b""]
    assert (sender.stopped, sender.lost) == (False, None)


# --- the handshake ------------------------------------------------------------------------


async def test_a_refused_handshake_shows_as_a_close_within_the_time_given(
    requester: ScriptedRequester,
) -> None:
    sender, peer = await _connect(requester)
    assert not await sender.refused(0.01)
    peer.reset()
    assert await sender.refused(10)


async def test_a_stop_that_comes_before_the_handshake_is_heard(
    requester: ScriptedRequester,
) -> None:
    sender = ResponseSender()
    sender.connection.data_received(STOP)  # uvloop reads before the dialler goes on
    assert sender.stopped
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: sender.connection, "127.0.0.1", requester.port)
    sender.send_handshake("s")
    assert await (await requester.connection()).frame() is not None
    await _close(sender)


@pytest.mark.parametrize("greeting", [KILL, b"SSH-2.0-OpenSSH_9.9 and more", encode(b'"go"')])
async def test_whoever_kills_or_talks_otherwise_before_the_handshake_gets_none(
    requester: ScriptedRequester, greeting: bytes
) -> None:
    sender = ResponseSender()
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: sender.connection, "127.0.0.1", requester.port)
    sender.connection.data_received(greeting)
    with pytest.raises(PublishError, match="ended before the handshake") as caught:
        sender.send_handshake("s")
    assert caught.value.client_gone
    await _close(sender)


async def test_a_reset_before_the_handshake_is_a_lost_connection() -> None:
    sender = ResponseSender()
    sender.connection.connection_lost(ConnectionResetError("reset"))
    with pytest.raises(PublishError, match="connection lost: reset") as caught:
        sender.send_handshake("s")
    assert caught.value.client_gone


# --- the end ------------------------------------------------------------------------------


async def test_finish_waits_for_the_requesters_close(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester)
    sender.write_final(FINAL)
    finishing = asyncio.create_task(sender.finish())
    assert (await peer.frames())[-1] == SENTINEL
    for _ in range(20):
        await asyncio.sleep(0)
    assert not finishing.done()
    await peer.close()
    await finishing
    assert await sender.connection.wait_closed(10)


async def test_finish_is_content_when_the_linger_is_over(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester, linger=0.01)
    sender.write_final(FINAL)
    await sender.finish()
    assert (await peer.frames())[-1] == SENTINEL
    assert await peer.frame() is None


async def test_finish_may_wait_another_time_than_the_senders_own(
    requester: ScriptedRequester,
) -> None:
    sender, peer = await _streaming(requester)
    sender.write_final(FINAL)
    await sender.finish(linger=0.0)
    assert (await peer.frames())[-1] == SENTINEL
    assert await peer.frame() is None
    assert not sender.peer_closed


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_finish_may_wait_as_long_as_the_connection_lives(
    requester: ScriptedRequester, how: str
) -> None:
    sender, peer = await _streaming(requester, linger=0.0)
    sender.write_final(FINAL)
    finishing = asyncio.create_task(sender.finish(linger=None))
    assert (await peer.frames())[-1] == SENTINEL
    for _ in range(20):
        await asyncio.sleep(0)
    assert not finishing.done()
    if how == "close":
        await peer.close()
    else:
        peer.reset()
    await finishing
    assert sender.peer_closed is (how == "close")


async def test_finish_waits_no_longer_when_the_process_ends(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester)
    sender.write_final(FINAL)
    sender.end_linger()
    await sender.finish()
    assert (await peer.frames())[-1] == SENTINEL


@pytest.mark.parametrize("frame", [STOP, KILL, GARBAGE, encode(b"", b"data")])
async def test_after_the_sentinel_whatever_the_requester_does_is_its_way_of_closing(
    requester: ScriptedRequester, frame: bytes
) -> None:
    sender, peer = await _streaming(requester)
    events = Events(sender)
    sender.write_final(FINAL)
    finishing = asyncio.create_task(sender.finish())
    await peer.frames()
    await peer.send(frame)
    peer.reset()
    await finishing
    assert (sender.stopped, sender.killed, sender.lost) == (False, False, None)
    assert events.seen == []


async def test_finish_fails_when_the_last_bytes_cannot_leave(
    requester: ScriptedRequester,
) -> None:
    sender, _ = await _streaming(requester, send_timeout=0.05)
    while not sender.connection.congested:
        sender.write_item(_item("x" * 1_000_000))
        await asyncio.sleep(0)
    sender.write_final(FINAL)
    with pytest.raises(PublishError) as caught:
        await sender.finish()
    assert not caught.value.client_gone


async def test_abort_drops_what_is_unsent(requester: ScriptedRequester) -> None:
    sender, peer = await _streaming(requester)
    sender.write_item(_item(1))
    sender.abort()
    assert await peer.frame() is None
    assert sender.lost is None
