"""One response stream from the engine's call to the last frame: pump, and why it ended.

:func:`run_response` owns the engine's task. The engine runs in a task of its own so that stop,
kill, a lost connection, a shutdown or a lost lease end it whatever it is waiting for; the
control frames themselves are read by the connection's callbacks, so even an engine that never
awaits cannot starve them. What the end means for the request is decided by
:mod:`dialback.ingress.handler`.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from dialback.errors import DialbackError, PublishError, SerializationError
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine, exited
from dialback.ingress.resumption import BREATH, Replay
from dialback.metrics.registration import Count
from dialback.outcomes import Revocation, Revoked
from dialback.transport.items import encode_final, encode_item, item_framer
from dialback.transport.messages import PayloadCodec
from dialback.transport.response_stream import WorkerEvent
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import PREFIX

logger = logging.getLogger(__name__)

_QUICK: Final = 0.05  # seconds of a first step; a turn of a busy loop is about as long
ENGINE_CLOSE_TIMEOUT: Final = 5.0
"""Seconds an engine may take to close after it was cancelled, before it is abandoned."""


class StreamEnd(Enum):
    """Why the engine's part of a response stream ended."""

    __hash__ = object.__hash__  # in C: Enum's own is a call of Python code

    DONE = "the engine ended its stream"
    REFUSED = "the engine refused"
    FAILED = "the engine failed"
    STOPPED = "the caller asked to stop"
    KILLED = "the caller killed the stream"
    LOST = "the connection was lost"
    SHUTDOWN = "the worker shut down"
    HANDED_OVER = "the worker handed the stream over"
    SUPERSEDED = "a newer worker serves the stream"
    NOT_FIRST = "it is not the first delivery: the caller has had another worker"
    LEASE_LOST = "the lease was lost"
    CANCELLED = "an operator cancelled the request"


TAKEN_AWAY: Final = frozenset({StreamEnd.LEASE_LOST, StreamEnd.SUPERSEDED, StreamEnd.NOT_FIRST})
"""Ends after which the delivery says nothing of its request."""


@dataclass(slots=True)
class ResponseRun:
    """What happened on one response stream.

    Attributes:
        end: Why it ended.
        items: Items written.
        response_bytes: Bytes of the bodies of items and final that were to be written, whether
            or not they left.
        cancelled: Whether the engine was ended from outside; what it yields after that is dropped.
        accepted: Whether the engine accepted the request (good prologue).
        exhausted: Whether the engine's stream came to its own end.
        complete: Whether all that ends the stream was written after its last item.
        error: The engine's exception, or the publish error of a lost connection.
    """

    end: StreamEnd = StreamEnd.DONE
    items: int = 0
    response_bytes: int = 0
    cancelled: bool = False
    accepted: bool = False
    exhausted: bool = False
    complete: bool = False
    error: BaseException | None = None


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that another worker can go on with.

    Attributes:
        able: Whether the engine can resume; else only a stream without items can be taken over.
        base: Items that the requester had before this worker.
        replay: Takes out of the engine what the requester has.
    """

    able: bool
    base: int
    replay: Replay


class ResponseHooks(msgspec.Struct, kw_only=True):
    """What the handler wants to know while a stream runs, and where its bytes are counted.

    Attributes:
        accepted: The prologue was queued.
        first_item: The first item is about to be queued.
        item_sent: An item was queued; ``None`` for nothing to call.
        response_bytes: The bytes of each body are added before it is queued.
    """

    accepted: Callable[[], None] = lambda: None
    first_item: Callable[[], None] = lambda: None
    item_sent: Callable[[], None] | None = None
    response_bytes: Count = msgspec.field(default_factory=Count)


async def run_response(
    engine: Engine,
    value: object,
    context: Context,
    sender: ResponseSender,
    *,
    codec: PayloadCodec,
    revocation: Revocation,
    stop_grace: float,
    hooks: ResponseHooks,
    resumption: Resumption | None = None,
) -> ResponseRun:
    """Call the engine and write its items until something ends the stream.

    Nothing is raised but ``CancelledError``; the engine is closed in every case.

    Args:
        engine: The engine.
        value: The request's value.
        context: Its context; stop and kill are passed on to it.
        sender: The open response stream, handshake written.
        codec: Codec of the items.
        revocation: Ends the stream on shutdown or a lost lease.
        stop_grace: Seconds an engine has to end after a stop or a shutdown.
        hooks: Called as the stream goes on.
        resumption: For a stream that another worker can go on with; ``None`` for others.
    """
    run = ResponseRun()
    watch = _Watch(context, stop_grace)
    replay = resumption.replay if resumption is not None else Replay()
    if resumption is not None:
        watch.can_hand_over = lambda: resumption.able or resumption.base + run.items == 0
    sender.on_event(watch.sender_event)
    revocation.on_revoked(watch.revoked)
    if resumption is not None and resumption.able:
        revocation.on_handover_offered(watch.hand_over)
    if watch.ended is not None:  # killed or gone already: the engine is not called
        _conclude(run, watch, None, sender)
        return run
    pump = _Pump(engine, context, sender, codec, hooks, run, replay, watch)
    if not engine.quick:  # the requester waits for the handshake for ten seconds only
        sender.connection.flush()
    loop = asyncio.get_running_loop()
    task = loop.create_task(pump.serve(value), name=f"engine-{context.id()}")
    # After the engine's first step: a handshake that is queued leaves with its first items.
    loop.call_soon(pump.first_step_over)
    task.add_done_callback(watch.engine_done)
    try:
        await watch.over
    finally:
        watch.close()
        revocation.forget(watch.revoked)
        await _close_engine(pump, task)
    _conclude(run, watch, _error_of(task, watch), sender)
    if run.error is not None:
        _log_fault(run.error, engine, context)
    return run


class _Watch:
    """Collects what can end a stream from outside; the first ending wins.

    Attributes:
        ended: Why the engine must end now.
        over: Done when it must end, or has ended.
        asked: Why it was asked to end, politely and with a grace period.
        can_hand_over: Whether another worker can take the stream over as it is now.
    """

    def __init__(self, context: Context, stop_grace: float) -> None:
        self._context = context
        self._stop_grace = stop_grace
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.ended: StreamEnd | None = None
        self.over: asyncio.Future[None] = self._loop.create_future()
        self.asked: StreamEnd | None = None
        self.can_hand_over: Callable[[], bool] = lambda: False

    @property
    def calm(self) -> bool:
        """Whether nothing from outside has ended the stream, or asked for its end."""
        return self.ended is None and self.asked is None

    def sender_event(self, event: WorkerEvent) -> None:
        match event:
            case WorkerEvent.STOP:
                self._context.stop_generating()
                self._end_later(StreamEnd.STOPPED)
            case WorkerEvent.LOST:
                self._context.kill()
                self._end(StreamEnd.LOST)
            case WorkerEvent.SUPERSEDED:
                self._context.kill()
                self._end(StreamEnd.SUPERSEDED)
            case WorkerEvent.ANSWER:
                self._context.kill()
                self._end(StreamEnd.NOT_FIRST)
            case _:
                self._context.kill()
                self._end(StreamEnd.KILLED)

    def revoked(self, reason: Revoked) -> None:
        if reason is Revoked.LEASE_LOST:
            self._context.kill()
            self._end(StreamEnd.LEASE_LOST)
        elif reason is Revoked.SHUTDOWN and self.asked is None and self.can_hand_over():
            self.hand_over()
        else:
            cancelled = reason is Revoked.CANCELLED
            self._context.stop_generating()
            self._end_later(StreamEnd.CANCELLED if cancelled else StreamEnd.SHUTDOWN)

    def hand_over(self) -> None:
        """End between two items, without a word to the engine that it could answer to."""
        if self.asked is None:
            self._end(StreamEnd.HANDED_OVER)

    def _end_later(self, end: StreamEnd) -> None:
        self.asked = self.asked or end
        if self._timer is None and self.ended is None:
            self._timer = self._loop.call_later(self._stop_grace, self._end, end)

    def _end(self, end: StreamEnd) -> None:
        if self.ended is None:
            self.ended = end
            self._over()

    def engine_done(self, task: asyncio.Task[None]) -> None:
        del task
        self._over()

    def _over(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _Pump(msgspec.Struct):
    """Calls the engine and writes what it yields."""

    engine: Engine
    context: Context
    sender: ResponseSender
    codec: PayloadCodec
    hooks: ResponseHooks
    run: ResponseRun
    replay: Replay
    watch: _Watch
    leaving: bool = False
    began: float = math.inf

    def first_step_over(self) -> None:
        """Flush; called right after the first step of the task that runs :meth:`serve`."""
        self.engine.quick = time.monotonic() - self.began < _QUICK
        self.sender.connection.flush()

    async def serve(self, value: object) -> None:
        """Call the engine, write the prologue, each item with back-pressure, and the usual end."""
        self.began = time.monotonic()
        sender, run, replaying = self.sender, self.run, self.replay.pending
        counted, sent = self.hooks.response_bytes, self.hooks.item_sent
        frame_of, write = item_framer(self.codec), sender.frame_writer()
        prefix_size = PREFIX.size
        try:
            stream = await self.engine.start(value, self.context)
            try:
                sender.write_prologue()
                run.accepted = True
                self.hooks.accepted()
                # Not in a coroutine of its own, through which each item would have to pass; what
                # is looked up once above is looked up for every item otherwise; and of all that a
                # stream has, this touches little: with hundreds of them it is out of the cache.
                async for item in stream:
                    if run.cancelled:
                        break  # it went on; and the connection may be another stream's by now
                    if replaying:
                        replaying = await self._drop(item)
                        continue
                    frame, body_size = frame_of(item)
                    if not run.items:
                        self.hooks.first_item()
                    counted.value += body_size
                    run.response_bytes += body_size
                    breath_due = write(frame, prefix_size + body_size)
                    run.items += 1
                    if sent is not None:
                        sent()
                    if breath_due:
                        await sender.breathe()
                run.exhausted = not run.cancelled
                if not self.context.is_stopped():
                    self.replay.check_complete()
            finally:
                self.leaving = True
                close = getattr(stream, "aclose", None)
                if close is not None:
                    await close()
        except SystemExit as error:  # out of a task it would end the event loop, and the worker
            raise exited(error) from error
        if run.exhausted and self.watch.calm:
            self._write_end()

    def _write_end(self) -> None:
        """Write final and sentinel here, where they leave with the last item."""
        self.run.complete = True
        body = encode_final(self.codec)
        self.hooks.response_bytes.value += len(body)
        self.run.response_bytes += len(body)
        self.sender.write_end(body)

    async def _drop(self, item: object) -> bool:
        """Take an item out that the requester has; return whether the next one is another."""
        replay = self.replay
        replay.drop(encode_item(item, self.codec))
        if replay.dropped % BREATH == 0:
            await asyncio.sleep(0)
        return replay.pending


async def _close_engine(pump: _Pump, task: asyncio.Task[None]) -> None:
    """Cancel the engine's task and wait for it, but not for ever."""
    if task.done():
        if not task.cancelled():
            task.exception()  # nobody may be left who asks for it
        return
    pump.run.cancelled = True
    if not pump.leaving:  # else a cancellation would cut what the engine does at its end
        task.cancel()
    await asyncio.wait((task,), timeout=ENGINE_CLOSE_TIMEOUT)
    if not task.done():
        _abandoned.add(task)
        task.add_done_callback(_forget)
        logger.error(
            "engine ignores its cancellation and was abandoned; it must not swallow CancelledError",
            extra={"engine": pump.engine.name, "task": task.get_name()},
        )


_abandoned: set[asyncio.Task[None]] = set()


def _forget(task: asyncio.Task[None]) -> None:
    """An abandoned engine has ended after all; nobody wants its error any more."""
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()


def _error_of(task: asyncio.Task[None], watch: _Watch) -> BaseException | None:
    """Return what the engine raised; a cancellation that we caused or asked for is nothing."""
    if not task.done():
        return None
    try:
        return task.exception()
    except asyncio.CancelledError as error:
        ours = watch.ended is not None or watch.asked is not None
        return None if ours else error


def _conclude(
    run: ResponseRun, watch: _Watch, error: BaseException | None, sender: ResponseSender
) -> None:
    """Say why the stream ended. What came from outside first is stronger than its echo."""
    outside = watch.ended
    if outside in TAKEN_AWAY:
        run.end = outside
    elif sender.killed:
        run.end = StreamEnd.KILLED
    elif isinstance(error, PublishError) or sender.lost is not None:
        run.end, run.error = StreamEnd.LOST, sender.lost or error
    elif outside is StreamEnd.HANDED_OVER and not run.exhausted:
        run.end = outside
    elif error is not None:
        run.end, run.error = _engine_end(run, error), error
    else:
        run.end = StreamEnd.DONE if run.complete else watch.asked or StreamEnd.DONE


def _log_fault(error: BaseException, engine: Engine, context: Context) -> None:
    """Show where an engine failed. An error of dialback's says all in its text."""
    if not isinstance(error, DialbackError):
        facts = {"engine": engine.name, "request_id": context.id()}
        logger.warning("the engine raised an error", extra=facts, exc_info=error)


def _engine_end(run: ResponseRun, error: BaseException) -> StreamEnd:
    if run.accepted or isinstance(error, SerializationError):
        return StreamEnd.FAILED
    return StreamEnd.REFUSED
