"""How a request with an open response stream ends: seen by the requester, by the queue, and in
the metrics (overview section 3; protocol section 12.3, release 1.6.1).
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import orjson
import pytest

from dialback.ingress.context import Context
from dialback.metrics.names import ErrorType
from dialback.outcomes import Outcome, Revocation, Revoked, Superseded
from dialback.transport.dial import DialSettings
from dialback.transport.two_part import TwoPartMessage, encode
from support.deaf_requester import DeafRequester, shrink_send_buffers
from support.frames import request_payload
from support.ingress_rig import (
    ACCEPTED,
    FINAL,
    FINAL_BYTES,
    HANDSHAKE,
    MSGPACK_FINAL,
    PATIENT,
    SENTINEL,
    Counts,
    IngressRig,
    error_item,
    finished,
    item,
    item_bytes,
)
from support.scripted_requester import KILL, STOP, CallHome, ScriptedRequester


async def count(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yield ``{"i": 0}`` up to ``n``."""
    for i in range(request["n"]):
        yield {"i": i}


async def until_stopped(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yield one item, then obey the caller."""
    yield {"i": 0}
    await context.async_killed_or_stopped()


class Stubborn:
    """Yields one item and then waits for ever, whatever the caller says."""

    def __init__(self) -> None:
        self.context: Context | None = None
        self.closed = False

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.context = context
        try:
            yield {"i": 0}
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def endless(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yield for ever, one item in each turn of the loop."""
    while True:
        yield {"i": 0}
        await asyncio.sleep(0)


async def first_frames(connection: CallHome, number: int) -> list[TwoPartMessage]:
    """Read so many frames."""
    frames: list[TwoPartMessage] = []
    for _ in range(number):
        frame = await connection.frame()
        assert frame is not None
        frames.append(frame)
    return frames


async def loop_turns(number: int) -> None:
    """Let the event loop turn so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def rest(connection: CallHome) -> bytes:
    """Read to the end, close, and return everything that was ever received."""
    await connection.frames()
    await connection.close()
    return bytes(connection.received)


# --- completed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 3, 500])
async def test_completed_request_gets_its_items_the_final_and_the_sentinel(n: int) -> None:
    values = [{"i": i} for i in range(n)]
    rig = IngressRig(count)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, {"n": n})
        connection = await requester.connection()
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + b"".join(map(item, values)) + FINAL + SENTINEL
    sent = item_bytes(*values) + FINAL_BYTES
    assert (ending.outcome, ending.reason, ending.error_type) == (Outcome.COMPLETED, "", None)
    assert (ending.request_id, ending.caller) == ("req-1", requester.address)
    assert (ending.items, ending.response_bytes, ending.dials) == (n, sent, 1)
    assert ending.caller_told
    assert ending.time_to_first_response is not None
    assert rig.counts() == Counts(response_bytes=sent, healthy=n + 1)


async def test_msgpack_request_is_answered_in_msgpack() -> None:
    rig = IngressRig(count)
    body = msgspec.msgpack.encode({"n": 1})
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, body=body, payload_codec="msgpack"))
        received = await rest(await requester.connection())
        ending = finished(await serving)
    # Protocol section 6.4: the item in msgpack, byte for byte.
    first = bytes.fromhex(
        "00000000000000000000000000000020000000000000000082a46461746181a46461746181a16900"
        "ae636f6d706c6574655f66696e616cc2"
    )
    assert received == HANDSHAKE + ACCEPTED + first + MSGPACK_FINAL + SENTINEL
    assert ending.outcome is Outcome.COMPLETED
    assert rig.counts() == Counts(response_bytes=0x20 + 0x11, healthy=2)


async def test_request_ends_when_the_requester_has_closed_not_before() -> None:
    rig = IngressRig(count)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, {"n": 1})
        connection = await requester.connection()
        assert (await connection.frames())[-1].header == b'"sentinel"'
        assert not serving.done()
        await connection.close()
        assert finished(await serving).outcome is Outcome.COMPLETED


async def test_requester_that_never_closes_is_left_after_the_linger() -> None:
    rig = IngressRig(count, dial=DialSettings(linger=0.02))
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, {"n": 1})
        connection = await requester.connection()
        frames = await connection.frames()
        assert finished(await serving).outcome is Outcome.COMPLETED
        assert await connection.frame() is None
    assert frames[-1].header == b'"sentinel"'
    assert rig.counts().errors == {}


@pytest.mark.parametrize("last_word", [STOP, KILL, b"\xff" * 24])
async def test_what_the_requester_sends_after_the_sentinel_changes_nothing(
    last_word: bytes,
) -> None:
    rig = IngressRig(count)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, {"n": 1})
        connection = await requester.connection()
        await connection.frames()
        await connection.send(last_word)
        await connection.close()
        ending = finished(await serving)
    assert ending.outcome is Outcome.COMPLETED
    assert (rig.counts().errors, rig.counts().cancellations) == ({}, 0)


async def test_reset_after_the_sentinel_is_a_way_of_closing() -> None:
    rig = IngressRig(count)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, {"n": 1})
        connection = await requester.connection()
        await connection.frames()
        connection.reset()
        ending = finished(await serving)
    assert ending.outcome is Outcome.COMPLETED
    assert (rig.counts().errors, rig.counts().cancellations) == ({}, 0)


async def test_half_close_is_no_cancellation_and_needs_no_linger() -> None:
    proceed = asyncio.Event()

    async def two(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        await proceed.wait()
        await loop_turns(10)  # the FIN is read
        assert not context.is_stopped()
        yield {"i": 1}

    rig = IngressRig(two)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        connection.half_close()
        proceed.set()
        await connection.frames()
        ending = finished(await serving)
    items = item({"i": 0}) + item({"i": 1})
    assert bytes(connection.received) == HANDSHAKE + ACCEPTED + items + FINAL + SENTINEL
    assert ending.outcome is Outcome.COMPLETED
    assert rig.counts() == Counts(
        response_bytes=item_bytes({"i": 0}, {"i": 1}) + FINAL_BYTES, healthy=3
    )


async def test_engine_sees_what_was_sent_with_the_request() -> None:
    seen: list[Context] = []

    async def look(request: Any, context: Context) -> AsyncIterator[Any]:
        seen.append(context)
        yield request

    rig = IngressRig(look, refusal_wait=0)
    headers = {"Dialback-Deadline": "2000000000000000000", "x-other": "1"}
    async with ScriptedRequester() as requester:
        payload = request_payload(requester.address, 1, metadata={"tenant": "a"})
        serving = rig.start(payload, headers=headers, number=2)
        await rest(await requester.connection())
        await serving
    (context,) = seen
    assert (context.id(), context.delivery, context.lane) == ("req-1", 2, "normal")
    assert (context.metadata, dict(context.headers)) == ({"tenant": "a"}, headers)
    assert context.deadline is not None
    assert context.deadline.timestamp() == 2_000_000_000


# --- stopped ------------------------------------------------------------------------------------


async def test_stop_is_obeyed_flushed_and_no_error() -> None:
    rig = IngressRig(until_stopped)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(STOP)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0}) + FINAL + SENTINEL
    assert (ending.outcome, ending.reason) == (Outcome.STOPPED, "the caller asked to stop")
    assert (ending.error_type, ending.caller_told, ending.items) == (None, True, 1)
    assert rig.counts() == Counts(
        cancellations=1, response_bytes=item_bytes({"i": 0}) + FINAL_BYTES, healthy=1
    )


async def test_engine_that_ignores_a_stop_is_closed_after_the_grace() -> None:
    engine = Stubborn()
    rig = IngressRig(engine, stop_grace=0.02)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(STOP + STOP)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0}) + FINAL + SENTINEL
    assert ending.outcome is Outcome.STOPPED
    assert engine.closed
    assert engine.context is not None
    assert (engine.context.is_stopped(), engine.context.is_killed()) == (True, False)
    assert rig.counts() == Counts(
        cancellations=1, response_bytes=item_bytes({"i": 0}) + FINAL_BYTES, healthy=1
    )


@pytest.mark.parametrize("obeys", [True, False])
async def test_stop_before_the_engine_accepted_is_answered_with_an_empty_stream(
    obeys: bool,
) -> None:
    called = asyncio.Event()

    async def slow_to_accept(request: Any, context: Context) -> AsyncIterator[Any]:
        called.set()
        await (context.async_killed_or_stopped() if obeys else asyncio.Event().wait())
        return count({"n": 0}, context)

    rig = IngressRig(slow_to_accept, stop_grace=PATIENT if obeys else 0)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await called.wait()
        await connection.send(STOP)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + FINAL + SENTINEL
    assert (ending.outcome, ending.items) == (Outcome.STOPPED, 0)
    assert rig.counts() == Counts(
        cancellations=1, response_bytes=FINAL_BYTES, first_responses=1 if obeys else 0
    )


@pytest.mark.parametrize("obeys", [True, False])
async def test_stop_is_heard_while_the_engine_yields_without_awaiting(obeys: bool) -> None:
    async def flood(request: Any, context: Context) -> AsyncIterator[Any]:
        while not (obeys and context.is_stopped()):
            yield {"i": 0}

    rig = IngressRig(flood, stop_grace=PATIENT if obeys else 0.02)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(STOP)
        frames = await connection.frames()
        await connection.close()
        ending = finished(await serving)
    assert [frame.data or frame.header for frame in frames[-2:]] == [FINAL[24:], SENTINEL[24:]]
    assert ending.outcome is Outcome.STOPPED
    assert ending.items == 1 + len(frames) - 2
    assert (rig.counts().errors, rig.counts().cancellations) == ({}, 1)


async def test_engine_that_fails_after_a_stop_has_failed() -> None:
    async def break_when_stopped(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        await context.async_killed_or_stopped()
        raise RuntimeError("no clean way out")

    rig = IngressRig(break_when_stopped)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(STOP)
        await rest(connection)
        ending = finished(await serving)
    assert ending.outcome is Outcome.ENGINE_FAILED


# --- killed, and what counts as a kill ----------------------------------------------------------


async def test_kill_ends_the_stream_without_another_byte() -> None:
    engine = Stubborn()
    rig = IngressRig(engine)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(KILL)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0})
    assert (ending.outcome, ending.reason) == (Outcome.KILLED, "the caller killed the stream")
    assert (ending.error_type, ending.caller_told) == (ErrorType.PUBLISH_FINAL, False)
    assert engine.closed
    assert engine.context is not None
    assert engine.context.is_killed()
    assert rig.counts() == Counts(
        errors={"publish_final": 1}, cancellations=1, response_bytes=item_bytes({"i": 0}), healthy=1
    )


async def test_kill_after_a_stop_is_a_kill() -> None:
    rig = IngressRig(Stubborn())
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(STOP + KILL)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0})
    assert ending.outcome is Outcome.KILLED
    assert rig.counts().cancellations == 1


@pytest.mark.parametrize(
    "violation",
    [
        pytest.param(encode(b'{"x":1}'), id="no control value"),
        pytest.param(encode(b"stop"), id="no JSON"),
        pytest.param(encode(b'"\xff"'), id="no UTF-8"),
        pytest.param(SENTINEL, id="sentinel"),
        pytest.param(encode(b"", b"data"), id="data frame"),
        pytest.param(encode(b'"stop"', b"body"), id="stop with a body"),
        pytest.param(b"\xff" * 24, id="no frame"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n", id="HTTP"),
    ],
)
async def test_requester_that_breaks_the_protocol_is_treated_as_a_kill(violation: bytes) -> None:
    engine = Stubborn()
    rig = IngressRig(engine)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(violation)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0})
    assert ending.outcome is Outcome.KILLED
    assert engine.closed
    assert rig.counts() == Counts(
        errors={"publish_final": 1}, cancellations=1, response_bytes=item_bytes({"i": 0}), healthy=1
    )


async def test_empty_frame_from_the_requester_means_nothing() -> None:
    rig = IngressRig(until_stopped)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(bytes(24) + STOP)
        await rest(connection)
        assert finished(await serving).outcome is Outcome.STOPPED


async def test_kill_before_the_engine_accepted_brings_no_prologue() -> None:
    called = asyncio.Event()

    async def never_accepts(request: Any, context: Context) -> AsyncIterator[Any]:
        called.set()
        await asyncio.Event().wait()
        return count({"n": 0}, context)

    rig = IngressRig(never_accepts)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await called.wait()
        await connection.send(KILL)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE
    assert ending.outcome is Outcome.KILLED
    assert rig.counts() == Counts(errors={"publish_final": 1}, cancellations=1, first_responses=0)


# --- the client is gone, or the network ---------------------------------------------------------


async def test_reset_ends_the_engine_and_is_one_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Stubborn()
    rig = IngressRig(engine)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        connection.reset()
        ending = finished(await serving)
    assert ending.outcome is Outcome.CLIENT_GONE
    assert (ending.error_type, ending.caller_told) == (ErrorType.PUBLISH_RESPONSE, False)
    assert engine.closed
    assert engine.context is not None
    assert engine.context.is_killed()
    assert rig.counts() == Counts(
        errors={"publish_response": 1},
        cancellations=1,
        publish_failures={("response", "client_disconnect"): 1},
        response_bytes=item_bytes({"i": 0}),
        healthy=1,
    )
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_requester_that_closes_is_gone_when_a_write_fails() -> None:
    rig = IngressRig(endless)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.close()
        ending = finished(await serving)
    assert ending.outcome is Outcome.CLIENT_GONE
    counts = rig.counts()
    assert (counts.errors, counts.cancellations) == ({"publish_response": 1}, 1)
    assert counts.publish_failures == {("response", "client_disconnect"): 1}


class OneLargeItem:
    """Yields an item larger than the sockets' buffers, and smaller than the sender's."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield "x" * 200_000
        self.ended.set()


async def test_kill_while_the_last_items_are_flushed_is_a_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink_send_buffers(monkeypatch)
    engine = OneLargeItem()
    rig = IngressRig(engine, dial=DialSettings(send_timeout=1))
    with DeafRequester() as requester:
        serving = rig.start(request_payload(requester.address))
        await requester.accept()
        await engine.ended.wait()
        await loop_turns(20)  # the sentinel is queued behind the item
        await requester.send(KILL)
        ending = finished(await serving)
    assert ending.outcome is Outcome.KILLED
    assert rig.counts().errors == {"publish_final": 1}
    assert rig.counts().cancellations == 1


async def test_requester_that_leaves_while_the_last_items_are_flushed_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink_send_buffers(monkeypatch)
    engine = OneLargeItem()
    rig = IngressRig(engine)
    with DeafRequester() as requester:
        serving = rig.start(request_payload(requester.address))
        await requester.accept()
        await engine.ended.wait()
        await loop_turns(20)
        requester.reset()
        ending = finished(await serving)
    assert (ending.outcome, ending.error_type) == (Outcome.CLIENT_GONE, ErrorType.PUBLISH_FINAL)
    counts = rig.counts()
    assert (counts.errors, counts.cancellations) == ({"publish_final": 1}, 1)
    assert counts.publish_failures == {("final", "client_disconnect"): 1}


async def test_lease_lost_while_the_last_items_are_flushed_settles_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrink_send_buffers(monkeypatch)
    engine, revocation = OneLargeItem(), Revocation()
    rig = IngressRig(engine)
    with DeafRequester() as requester:
        serving = rig.start(request_payload(requester.address), revocation=revocation)
        await requester.accept()
        await engine.ended.wait()
        await loop_turns(20)
        revocation.set(Revoked.LEASE_LOST)
        assert isinstance(await serving, Superseded)
    assert (rig.counts().errors, rig.counts().cancellations) == ({}, 0)


@pytest.mark.parametrize(("items", "stage"), [(1, "final"), (9, "response")])
async def test_requester_that_takes_no_bytes_is_a_network_failure(
    items: int, stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def large(request: Any, context: Context) -> AsyncIterator[Any]:
        for _ in range(items):
            yield "x" * 200_000

    shrink_send_buffers(monkeypatch)
    rig = IngressRig(large, dial=DialSettings(send_timeout=0.05))
    with DeafRequester() as requester:
        serving = rig.start(request_payload(requester.address))
        await requester.accept()
        ending = finished(await serving)
    label = f"publish_{stage}"
    assert (ending.outcome, ending.error_type) == (Outcome.NETWORK_FAILED, ErrorType(label))
    assert "took no bytes" in ending.reason
    counts = rig.counts()
    assert (counts.errors, counts.cancellations) == ({label: 1}, 0)
    assert counts.publish_failures == {(stage, "transport_failure"): 1}
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (record.levelname, record.message) == ("ERROR", "answer could not be published")


async def test_slow_requester_holds_the_engine_back() -> None:
    produced: list[int] = []

    async def large(request: Any, context: Context) -> AsyncIterator[Any]:
        for i in range(100):
            produced.append(i)
            yield "x" * 1_000_000

    rig = IngressRig(large)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        await first_frames(connection, 3)
        assert len(produced) < 50
        await rest(connection)
        assert finished(await serving).items == 100


# --- the engine ---------------------------------------------------------------------------------


def refusing(request: Any, context: Context) -> AsyncIterator[Any]:
    raise ValueError("boom")


async def refusing_late(request: Any, context: Context) -> AsyncIterator[Any]:
    await asyncio.sleep(0)
    raise ValueError("boom")


@pytest.mark.parametrize("engine", [refusing, refusing_late])
async def test_engine_that_refuses_is_answered_with_an_error_prologue(engine: object) -> None:
    rig = IngressRig(engine)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        received = await rest(await requester.connection())
        ending = finished(await serving)
    prologue = encode(  # protocol section 6.2, as release 1.6.1 writes it
        b'{"error":"Generate Error: ValueError: boom","typed_error":{"error_type":"Unknown",'
        b'"class":"Internal","reason":"runtime.unclassified","message":"ValueError: boom",'
        b'"diagnostic":"ValueError: boom"}}'
    )
    assert received == HANDSHAKE + prologue + SENTINEL
    assert (ending.outcome, ending.reason) == (Outcome.ENGINE_REFUSED, "ValueError: boom")
    assert (ending.error_type, ending.caller_told) == (ErrorType.GENERATE, True)
    assert (ending.items, ending.time_to_first_response) == (0, None)
    assert rig.counts() == Counts(errors={"generate": 1}, first_responses=0)


async def test_engine_that_returns_no_async_iterator_refuses() -> None:
    def listed(request: Any, context: Context) -> Any:
        return [1, 2]

    rig = IngressRig(listed)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        connection = await requester.connection()
        frames = await connection.frames()
        await connection.close()
        ending = finished(await serving)
    text = orjson.loads(frames[1].header)["error"]
    assert text.startswith("Generate Error: TypeError: engine ")
    assert text.endswith("returned list, no async iterator")
    assert ending.outcome is Outcome.ENGINE_REFUSED


FAILURES = [
    (ValueError("x"), "InvalidArgument", "InvalidRequest", "invalid_argument", "ValueError: x"),
    (TypeError("x"), "InvalidArgument", "InvalidRequest", "invalid_argument", "TypeError: x"),
    (ConnectionError("x"), "Disconnected", "Unavailable", "disconnected", "ConnectionError: x"),
    (
        TimeoutError("x"),
        "ConnectionTimeout",
        "DeadlineExceeded",
        "connection_timeout",
        "TimeoutError: x",
    ),
    (asyncio.CancelledError(), "Cancelled", "Cancelled", "cancelled", "CancelledError: "),
    (
        GeneratorExit(),
        "EngineShutdown",
        "Unavailable",
        "engine_shutdown",
        "engine shutting down",
    ),
    (RuntimeError("x"), "Unknown", "Internal", "unknown", "RuntimeError: x"),
    (KeyError("x"), "Unknown", "Internal", "unknown", "KeyError: 'x'"),
    (OSError("x"), "Unknown", "Internal", "unknown", "OSError: x"),
    (AssertionError(), "Unknown", "Internal", "unknown", "AssertionError: "),
]


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize(("failure", "name", "kind", "reason", "message"), FAILURES, ids=str)
async def test_engine_that_fails_is_answered_with_an_error_item_and_the_final(  # noqa: PLR0917
    before: int, failure: BaseException, name: str, kind: str, reason: str, message: str
) -> None:
    async def broken(request: Any, context: Context) -> AsyncIterator[Any]:
        for i in range(before):
            yield {"i": i}
        raise failure

    rig = IngressRig(broken)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        received = await rest(await requester.connection())
        ending = finished(await serving)
    items = [{"i": i} for i in range(before)]
    told = error_item(name, kind, f"backend.{reason}", message)
    assert received == HANDSHAKE + ACCEPTED + b"".join(map(item, items)) + told + FINAL + SENTINEL
    assert (ending.outcome, ending.error_type) == (Outcome.ENGINE_FAILED, None)
    assert (ending.items, ending.caller_told) == (before, True)
    assert rig.counts() == Counts(
        response_bytes=item_bytes(*items) + len(told) - 24 + FINAL_BYTES, healthy=before
    )


async def test_item_that_cannot_be_serialised_is_an_error_item() -> None:
    async def unserialisable(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        yield {"what": object()}

    rig = IngressRig(unserialisable)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        received = await rest(await requester.connection())
        ending = finished(await serving)
    told = error_item("Unknown", "Internal", "backend.unknown", ending.reason)
    assert "SerializationError: cannot write a value as json" in ending.reason
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0}) + told + FINAL + SENTINEL
    assert (ending.outcome, ending.error_type) == (
        Outcome.ENGINE_FAILED,
        ErrorType.SERIALIZATION,
    )
    assert rig.counts() == Counts(
        errors={"serialization": 1},
        response_bytes=item_bytes({"i": 0}) + len(told) - 24 + FINAL_BYTES,
        healthy=1,
    )


async def test_engine_that_fails_while_it_is_closed_after_its_last_item_has_failed() -> None:
    class BadClose:
        def __init__(self) -> None:
            self._left = 1

        def __aiter__(self) -> "BadClose":
            return self

        async def __anext__(self) -> Any:
            self._left -= 1
            if self._left < 0:
                raise StopAsyncIteration
            return {"i": 0}

        async def aclose(self) -> None:
            raise RuntimeError("cannot close")

    def generate(request: Any, context: Context) -> BadClose:
        return BadClose()

    rig = IngressRig(generate)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester)
        await rest(await requester.connection())
        ending = finished(await serving)
    assert (ending.outcome, ending.reason) == (
        Outcome.ENGINE_FAILED,
        "RuntimeError: cannot close",
    )


# --- taken away: shutdown, lost lease -----------------------------------------------------------


@pytest.mark.parametrize("obeys", [True, False])
async def test_shutdown_ends_the_stream_without_a_final(obeys: bool) -> None:
    revocation = Revocation()
    rig = IngressRig(until_stopped if obeys else Stubborn(), stop_grace=PATIENT if obeys else 0.02)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), revocation=revocation)
        connection = await requester.connection()
        await first_frames(connection, 3)
        revocation.set(Revoked.SHUTDOWN)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0}) + SENTINEL
    assert (ending.outcome, ending.reason) == (Outcome.INTERRUPTED, "the worker shut down")
    assert rig.counts() == Counts(response_bytes=item_bytes({"i": 0}), healthy=1)


async def test_shutdown_before_the_engine_accepted_interrupts() -> None:
    revocation = Revocation()
    called = asyncio.Event()

    async def never_accepts(request: Any, context: Context) -> AsyncIterator[Any]:
        called.set()
        await asyncio.Event().wait()
        return count({"n": 0}, context)

    rig = IngressRig(never_accepts, stop_grace=0)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), revocation=revocation)
        connection = await requester.connection()
        await called.wait()
        revocation.set(Revoked.SHUTDOWN)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + SENTINEL
    assert ending.outcome is Outcome.INTERRUPTED


async def test_stop_that_came_before_the_shutdown_is_a_stop() -> None:
    revocation = Revocation()
    stopped = asyncio.Event()

    async def tell_when_stopped(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        await context.async_killed_or_stopped()
        stopped.set()
        await asyncio.Event().wait()

    rig = IngressRig(tell_when_stopped, stop_grace=0.05)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), revocation=revocation)
        connection = await requester.connection()
        await first_frames(connection, 3)
        await connection.send(STOP)
        await stopped.wait()
        revocation.set(Revoked.SHUTDOWN)
        received = await rest(connection)
        ending = finished(await serving)
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0}) + FINAL + SENTINEL
    assert ending.outcome is Outcome.STOPPED
    assert rig.counts().cancellations == 1


async def test_shutdown_ends_the_wait_for_the_requesters_close() -> None:
    revocation = Revocation()
    rig = IngressRig(count)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, {"n": 1}), revocation=revocation)
        connection = await requester.connection()
        await connection.frames()
        revocation.set(Revoked.SHUTDOWN)
        ending = finished(await serving)
    assert ending.outcome is Outcome.COMPLETED


async def test_lost_lease_ends_the_stream_at_once_and_settles_nothing() -> None:
    revocation = Revocation()
    engine = Stubborn()
    rig = IngressRig(engine)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address), revocation=revocation)
        connection = await requester.connection()
        await first_frames(connection, 3)
        revocation.set(Revoked.LEASE_LOST)
        received = await rest(connection)
        ending = await serving
    assert ending == Superseded(request_id="req-1", reason="the lease was lost")
    assert received == HANDSHAKE + ACCEPTED + item({"i": 0})
    assert engine.closed
    assert engine.context is not None
    assert engine.context.is_killed()
    assert rig.counts() == Counts(response_bytes=item_bytes({"i": 0}), healthy=1)


async def test_lease_lost_while_waiting_for_the_requesters_close_settles_nothing() -> None:
    revocation = Revocation()
    rig = IngressRig(count)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, {"n": 1}), revocation=revocation)
        connection = await requester.connection()
        await connection.frames()
        revocation.set(Revoked.LEASE_LOST)
        assert isinstance(await serving, Superseded)


# --- a redelivery -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
async def test_redelivery_on_a_spent_subject_ends_quietly_without_the_engine(number: int) -> None:
    calls: list[Any] = []

    async def called(request: Any, context: Context) -> AsyncIterator[Any]:
        calls.append(request)
        yield request

    rig = IngressRig(called)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, 1), number=number, redelivered=True)
        (await requester.connection()).reset()
        ending = finished(await serving)
    assert (ending.outcome, ending.reason) == (
        Outcome.CLIENT_GONE,
        "the stream subject is spent",
    )
    assert (calls, ending.error_type, ending.caller_told) == ([], None, False)
    assert rig.counts() == Counts(first_responses=0)


async def test_redelivery_that_is_not_refused_is_served() -> None:
    rig = IngressRig(count, refusal_wait=0.02)
    async with ScriptedRequester() as requester:
        serving = rig.start(request_payload(requester.address, {"n": 1}), number=2)
        await rest(await requester.connection())
        assert finished(await serving).outcome is Outcome.COMPLETED


async def test_first_delivery_does_not_wait_for_a_refusal() -> None:
    rig = IngressRig(count, refusal_wait=PATIENT)
    async with ScriptedRequester() as requester:
        serving = rig.serve(requester, {"n": 1})
        await rest(await requester.connection())
        assert finished(await serving).outcome is Outcome.COMPLETED
