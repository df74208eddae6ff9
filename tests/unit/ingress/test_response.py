"""Running the engine: it is called once, closed in every case, and cannot hold us up."""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson
import pytest

from dialback.cli.logs import JsonFormatter
from dialback.errors import InvalidArgument
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine
from dialback.ingress.response import ResponseHooks, ResponseRun, StreamEnd, run_response
from dialback.metrics.registration import Count
from dialback.outcomes import Revocation, Revoked
from dialback.transport.address import CallHomePolicy, parse_address
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.messages import PayloadCodec
from dialback.transport.response_stream import SENTINEL_FRAME, WorkerEvent
from dialback.transport.sender import ResponseSender
from support.ingress_rig import ACCEPTED, FINAL, FINAL_BYTES, HANDSHAKE, PATIENT, item
from support.scripted_requester import KILL, STOP, CallHome, ScriptedRequester

SUBJECT = "6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6"


class Stream:
    """An open response stream, its two ends."""

    def __init__(self, sender: ResponseSender, requester: CallHome) -> None:
        self.sender = sender
        self.requester = requester
        self.context = Context("req-1")
        self.revocation = Revocation()
        self.accepted = 0
        self.first_items = 0
        self.bytes = Count()
        self.sent = 0

    def run(self, engine: object, *, stop_grace: float = PATIENT) -> "asyncio.Task[ResponseRun]":
        return asyncio.create_task(self._run(engine, stop_grace))

    async def _run(self, engine: object, stop_grace: float) -> ResponseRun:
        return await run_response(
            Engine(engine, name="mine"),
            None,
            self.context,
            self.sender,
            codec=PayloadCodec.JSON,
            revocation=self.revocation,
            stop_grace=stop_grace,
            hooks=ResponseHooks(
                accepted=self._accepted,
                first_item=self._first,
                item_sent=self._sent,
                response_bytes=self.bytes,
            ),
        )

    def _first(self) -> None:
        assert self.bytes.value == 0
        self.first_items += 1

    def _accepted(self) -> None:
        self.accepted += 1

    def _sent(self) -> None:
        self.sent += 1

    async def heard(self, *events: WorkerEvent) -> None:
        """Wait until the sender has heard all these."""
        missing = set(events)
        done = asyncio.Event()

        def hear(event: WorkerEvent) -> None:
            missing.discard(event)
            if not missing:
                done.set()

        self.sender.on_event(hear)
        await done.wait()


@pytest.fixture
async def stream() -> AsyncGenerator[Stream]:
    async with ScriptedRequester() as requester:
        dialer = Dialer(CallHomePolicy(), DialSettings(attempts=1))
        sender = await dialer.dial(parse_address(requester.address), SUBJECT)
        connection = await requester.connection()
        assert await connection.frame() is not None
        yield Stream(sender, connection)
        sender.abort()
        await sender.connection.wait_closed(PATIENT)


async def waiting(request: Any, context: Context) -> AsyncIterator[Any]:
    yield {"i": 0}
    await asyncio.Event().wait()


async def test_run_tells_what_was_written(stream: Stream) -> None:
    async def two(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        yield {"i": 1}

    run = await stream.run(two)
    assert run == ResponseRun(
        end=StreamEnd.DONE,
        items=2,
        response_bytes=2 * 48 + FINAL_BYTES,
        accepted=True,
        exhausted=True,
        complete=True,
    )
    assert (stream.accepted, stream.first_items, stream.sent) == (1, 1, 2)
    assert stream.bytes.value == run.response_bytes
    for _ in range(5):
        await stream.requester.frame()
    items = item({"i": 0}) + item({"i": 1})
    expected = HANDSHAKE + ACCEPTED + items + FINAL + SENTINEL_FRAME
    assert bytes(stream.requester.received) == expected


async def test_hooks_need_not_be_given(stream: Stream) -> None:
    run = await run_response(
        Engine(waiting),
        None,
        stream.context,
        stream.sender,
        codec=PayloadCodec.JSON,
        revocation=_revoked(Revoked.SHUTDOWN),
        stop_grace=0.01,
        hooks=ResponseHooks(),
    )
    expected = ResponseRun(end=StreamEnd.SHUTDOWN, items=1, response_bytes=48, accepted=True)
    expected.cancelled = True  # it would have waited for ever
    assert run == expected


def _revoked(reason: Revoked) -> Revocation:
    revocation = Revocation()
    revocation.set(reason)
    return revocation


# --- what happened before ---------------------------------------------------------------------


@pytest.mark.parametrize("before", ["kill", "reset", "lease lost"])
async def test_engine_is_not_called_when_nobody_wants_it_any_more(
    before: str, stream: Stream
) -> None:
    calls: list[Any] = []

    async def called(request: Any, context: Context) -> AsyncIterator[Any]:
        calls.append(request)
        return waiting(request, context)

    match before:
        case "kill":
            await stream.requester.send(KILL)
            await stream.heard(WorkerEvent.KILL)
        case "reset":
            stream.requester.reset()
            await stream.heard(WorkerEvent.LOST)
        case _:
            stream.revocation.set(Revoked.LEASE_LOST)
    run = await stream.run(called)
    ends = {"kill": StreamEnd.KILLED, "reset": StreamEnd.LOST, "lease lost": StreamEnd.LEASE_LOST}
    assert run.end is ends[before]
    assert run.error is stream.sender.lost
    assert calls == []
    assert stream.context.is_killed()


async def test_stop_before_the_engine_is_called_reaches_it(stream: Stream) -> None:
    seen: list[bool] = []

    async def look(request: Any, context: Context) -> AsyncIterator[Any]:
        seen.append(context.is_stopped())
        yield {"i": 0}

    await stream.requester.send(STOP)
    await stream.heard(WorkerEvent.STOP)
    run = await stream.run(look)
    assert (run.end, run.items, seen) == (StreamEnd.STOPPED, 1, [True])


# --- the engine is closed in every case ---------------------------------------------------------


class Closing:
    """Notes how it was closed."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.yielded = asyncio.Event()

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            yield {"i": 0}
            self.yielded.set()
            await asyncio.Event().wait()
        except BaseException as error:
            self.error = error
            raise


async def _end(stream: Stream, how: str) -> None:
    match how:
        case "kill":
            await stream.requester.send(KILL)
        case "stop":
            await stream.requester.send(STOP)
        case "reset":
            stream.requester.reset()
        case "shutdown":
            stream.revocation.set(Revoked.SHUTDOWN)
        case _:
            stream.revocation.set(Revoked.LEASE_LOST)


ENDS = {
    "kill": StreamEnd.KILLED,
    "stop": StreamEnd.STOPPED,
    "reset": StreamEnd.LOST,
    "shutdown": StreamEnd.SHUTDOWN,
    "lease lost": StreamEnd.LEASE_LOST,
}


@pytest.mark.parametrize("how", ENDS)
async def test_waiting_engine_is_cancelled(how: str, stream: Stream) -> None:
    engine = Closing()
    running = stream.run(engine, stop_grace=0)
    await engine.yielded.wait()
    await _end(stream, how)
    run = await running
    assert run.end is ENDS[how]
    assert isinstance(engine.error, asyncio.CancelledError)
    assert stream.context.is_stopped()


async def test_engine_is_closed_when_an_item_cannot_be_written(stream: Stream) -> None:
    errors: list[BaseException] = []

    async def yielding(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            yield {"i": 0}
            yield object()
        except BaseException as error:
            errors.append(error)
            raise

    run = await stream.run(yielding)
    assert run.end is StreamEnd.FAILED
    assert isinstance(errors[0], GeneratorExit)


async def test_engine_is_closed_when_we_are_cancelled(stream: Stream) -> None:
    engine = Closing()
    running = stream.run(engine)
    await engine.yielded.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert isinstance(engine.error, asyncio.CancelledError)


async def test_first_polite_end_stays(stream: Stream) -> None:
    engine = Closing()
    running = stream.run(engine, stop_grace=0.02)
    await engine.yielded.wait()
    stream.revocation.set(Revoked.SHUTDOWN)
    await stream.requester.send(STOP)
    assert (await running).end is StreamEnd.SHUTDOWN


async def test_lost_lease_is_stronger_than_a_stop(stream: Stream) -> None:
    stopped = asyncio.Event()

    async def tell(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        await context.async_killed_or_stopped()
        stopped.set()
        await asyncio.Event().wait()

    running = stream.run(tell)
    await stream.requester.send(STOP)
    await stopped.wait()
    stream.revocation.set(Revoked.LEASE_LOST)
    assert (await running).end is StreamEnd.LEASE_LOST


# --- engines that will not end ------------------------------------------------------------------


async def test_engine_that_swallows_its_cancellation_and_yields_on_is_closed(
    stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    closed = asyncio.Event()

    async def deaf(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            while True:
                yield {"i": 0}
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue
        finally:
            closed.set()

    running = stream.run(deaf)
    await stream.requester.frame()
    await stream.requester.frame()
    await stream.requester.send(KILL)
    run = await running
    assert (run.end, run.items) == (StreamEnd.KILLED, 1)
    assert closed.is_set()
    assert caplog.records == []


@pytest.mark.parametrize("last_word", [None, RuntimeError("at last")])
async def test_engine_that_swallows_its_cancellation_is_abandoned_with_an_error(
    last_word: Exception | None,
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("dialback.ingress.response.ENGINE_CLOSE_TIMEOUT", 0.01)
    release, ended = asyncio.Event(), asyncio.Event()

    async def wedged(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        ended.set()
        if last_word is not None:
            raise last_word

    running = stream.run(wedged)
    await stream.requester.frame()
    await stream.requester.frame()
    await stream.requester.send(KILL)
    run = await running
    assert run.end is StreamEnd.KILLED
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "was abandoned; it must not swallow CancelledError" in record.message
    assert vars(record)["engine"] == "mine"
    (left,) = [task for task in asyncio.all_tasks() if task.get_name() == "engine-req-1"]
    release.set()
    await asyncio.wait((left,))
    assert ended.is_set()
    assert len(caplog.records) == 1  # nobody wants its error any more


async def test_engine_that_cancels_itself_has_failed(
    stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancelled(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner

    run = await stream.run(cancelled)
    assert (run.end, run.items) == (StreamEnd.FAILED, 1)
    assert isinstance(run.error, asyncio.CancelledError)
    assert "await inner" in caplog.text


async def test_engine_that_cancels_itself_because_of_a_stop_has_stopped(stream: Stream) -> None:
    async def cancelled(request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"i": 0}
        await context.async_killed_or_stopped()
        raise asyncio.CancelledError

    running = stream.run(cancelled)
    await stream.requester.send(STOP)
    assert (await running).end is StreamEnd.STOPPED


# --- engines that fail --------------------------------------------------------------------------


async def refusing(request: Any, context: Context) -> AsyncIterator[Any]:
    raise KeyError("never mind")


async def failing(request: Any, context: Context) -> AsyncIterator[Any]:
    yield {"i": 0}
    raise KeyError("never mind")


@pytest.mark.parametrize(
    ("engine", "end"), [(refusing, StreamEnd.REFUSED), (failing, StreamEnd.FAILED)]
)
async def test_error_of_an_engine_is_logged_with_its_traceback(
    engine: object, end: StreamEnd, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    run = await stream.run(engine)
    assert run.end is end
    (record,) = caplog.records
    facts = vars(record)
    assert (record.levelno, facts["engine"], facts["request_id"]) == (
        logging.WARNING,
        "mine",
        "req-1",
    )
    assert record.exc_info is not None
    assert record.exc_info[1] is run.error
    line = orjson.loads(JsonFormatter().format(record))
    assert 'raise KeyError("never mind")' in line["exception"]


async def test_error_that_an_engine_says_on_purpose_is_not_logged(
    stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(request: Any, context: Context) -> AsyncIterator[Any]:
        raise InvalidArgument("no such model")

    run = await stream.run(refuse)
    assert (run.end, caplog.records) == (StreamEnd.REFUSED, [])


async def test_item_that_cannot_be_written_is_not_logged(
    stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    async def unwritable(request: Any, context: Context) -> AsyncIterator[Any]:
        yield object()

    run = await stream.run(unwritable)
    assert (run.end, caplog.records) == (StreamEnd.FAILED, [])


@pytest.mark.parametrize("how", ENDS)
async def test_cancellation_of_ours_is_not_logged(
    how: str, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Closing()
    running = stream.run(engine, stop_grace=0)
    await engine.yielded.wait()
    await _end(stream, how)
    assert (await running).end is ENDS[how]
    assert caplog.records == []


class Exits:
    """Ends the process, as it thinks, in one of its parts."""

    def __init__(self, where: str) -> None:
        self._where = where

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self._exit_in("call")
        return self._items()

    async def _items(self) -> AsyncIterator[Any]:
        try:
            yield {"i": 0}
            self._exit_in("items")
            yield object()
        finally:
            self._exit_in("close")

    def _exit_in(self, where: str) -> None:
        if where == self._where:
            sys.exit(3)


@pytest.mark.parametrize(
    ("where", "end"),
    [
        ("call", StreamEnd.REFUSED),
        ("items", StreamEnd.FAILED),
        ("close", StreamEnd.FAILED),
    ],
)
async def test_engine_that_exits_has_failed_and_the_event_loop_goes_on(
    where: str, end: StreamEnd, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    run = await stream.run(Exits(where))
    assert run.end is end
    assert str(run.error) == "the engine raised SystemExit(3)"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "sys.exit(3)" in caplog.text
