"""The requester's end of one response stream: items in the order written, one end.

A :class:`ResponseReceiver` outlives connections: until the first item it waits for the next
worker when one is lost, and the newest dial wins (overview section 4, first step). Items are
decoded as they arrive, because the final is what ends the stream (protocol D-18).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dialback.errors import (
    DialbackError,
    ProtocolError,
    PublishError,
    ResponseError,
    StreamInterrupted,
)
from dialback.transport.connection import FrameConnection
from dialback.transport.dynamo_errors import read_error, read_refusal
from dialback.transport.messages import (
    Annotated,
    DynamoError,
    PayloadCodec,
    ResponseStreamPrologue,
    decode_item,
)
from dialback.transport.response_stream import (
    KILL_FRAME,
    STOP_FRAME,
    EndState,
    RequesterEnd,
    RequesterEvent,
    end_state,
)
from dialback.transport.two_part import MAX_CONTROL_BYTES, FrameLimits, TwoPartMessage

MAX_BUFFERED_ITEMS: Final = 64
"""Items waiting for the caller before the worker is held back; Dynamo's channel size."""
MAX_BUFFERED_BYTES: Final = 1024 * 1024
"""Their bytes: large items are held back sooner, whatever their number."""
_CLOSE_TIMEOUT: Final = 10.0  # seconds from the final to the worker's sentinel
_HANDSHAKE_LIMITS: Final = FrameLimits(header=MAX_CONTROL_BYTES, data=MAX_CONTROL_BYTES)


class ResponseReceiver:
    """Receives one response stream; iterate it with :meth:`next_item`.

    Attributes:
        subject: The stream subject.
        end: How the stream ended, or ``None``.
        items: Items handed to the caller.
        interruptions: Connections lost before the stream ended.
        dialled: Whether a worker has dialled back at least once.
    """

    def __init__(
        self, subject: str, codec: PayloadCodec, *, on_settled: Callable[["ResponseReceiver"], None]
    ) -> None:
        self.subject = subject
        self.end: EndState | None = None
        self.items = 0
        self.interruptions = 0
        self.dialled = False
        self._codec = codec
        self._on_settled = on_settled
        self._received = 0
        self._buffer: deque[tuple[Any, int]] = deque()
        self._buffered_bytes = 0
        self._error: DialbackError | None = None
        self._current: IncomingConnection | None = None
        self._stopped = False
        self._killed = False
        self._held_back = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def started(self) -> bool:
        """Whether a first item or the end has arrived."""
        return self._received > 0 or self.end is not None

    @property
    def connected(self) -> bool:
        """Whether a worker is on the line."""
        return self._current is not None

    # --- the caller's side ------------------------------------------------------------

    async def next_item(self) -> Any:
        """Return the next item as the engine yielded it.

        Raises:
            StopAsyncIteration: At the end: complete, or cancelled by :meth:`stop` or
                :meth:`kill`.
            ResponseError: For an error item; the stream can be read on.
            EngineRefusedError: If the engine refused the request.
            StreamInterrupted: If the stream ended before its final.
            RequestTimeoutError, DeadlineExceededError: What :meth:`fail` was given.
        """
        while not self._buffer:
            if self.end is not None:
                raise self._error or StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item, size = self._buffer.popleft()
        self._buffered_bytes -= size
        if self._held_back and self._has_room():
            self._hold_back(False)
        if isinstance(item, ResponseError):
            raise item
        self.items += 1
        return item

    def stop(self) -> None:
        """Ask the worker to finish early; what it has produced still arrives."""
        if self._stopped or self.end is not None:
            return
        self._stopped = True
        if self._current is not None:
            self._current.send(STOP_FRAME)

    def kill(self) -> None:
        """End the stream at once, on both sides. What has arrived can still be read."""
        if self.end is not None:
            return
        self._killed = True
        if self._current is not None:
            self._current.send(KILL_FRAME)
        self._finish(EndState.CANCELLED)

    def fail(self, error: DialbackError) -> None:
        """End the stream with an error of the caller's side (a timeout), and kill it."""
        if self.end is not None:
            return
        self._error = error
        self.kill()

    # --- the connections' side --------------------------------------------------------

    def attach(self, connection: "IncomingConnection") -> None:
        """A worker has shaken hands. The newest dial wins."""
        older, self._current = self._current, connection
        self.dialled = True
        if older is not None:
            self.interruptions += 1
            older.discard()
        if self._stopped:
            connection.send(STOP_FRAME)

    def refuse(self, prologue: ResponseStreamPrologue) -> None:
        """The engine refused the request."""
        self._error = read_refusal(prologue)
        self._finish(EndState.BROKEN)

    def receive_body(self, body: bytes) -> bool:
        """Take the body of a data-only frame; return whether it was the final."""
        try:
            wrapper = decode_item(body, self._codec)
        except ProtocolError as error:
            self._put(ResponseError("Unknown", str(error)), len(body))
            return False
        if wrapper.data is not None:
            self._put(_item_of(wrapper.data), len(body))
        elif not wrapper.complete_final:
            self._put(ResponseError("Unknown", "empty response received"), len(body))
        if wrapper.complete_final:
            self._finish(end_state(final_seen=True, cancelled=False))
        return wrapper.complete_final

    def detach(self, connection: "IncomingConnection", why: str, *, orderly: bool) -> None:
        """The worker's connection ended before the final.

        Args:
            connection: Which one; an older one changes nothing.
            why: For the error text.
            orderly: Whether the worker itself ended it (sentinel, violation): then no
                other worker will come for this request.
        """
        if connection is not self._current or self.end is not None:
            return
        self._current = None
        self.interruptions += 1
        if self._received or orderly or self._stopped:
            self._interrupt(why)

    def _interrupt(self, why: str) -> None:
        state = end_state(final_seen=False, cancelled=self._stopped or self._killed)
        if state is EndState.BROKEN:
            self._error = StreamInterrupted(self._received, why)
        self._finish(state)

    def _put(self, item: object, size: int) -> None:
        first = self._received == 0
        self._received += 1
        self._buffer.append((item, size))
        self._buffered_bytes += size
        if not self._held_back and self._is_full():
            self._hold_back(True)
        self._wake()
        if first:
            self._on_settled(self)

    def _is_full(self) -> bool:
        items, size = len(self._buffer), self._buffered_bytes
        return items >= MAX_BUFFERED_ITEMS or size >= MAX_BUFFERED_BYTES

    def _has_room(self) -> bool:
        """Whether enough was taken to read on; half, so that reading does not flutter."""
        items, size = len(self._buffer), self._buffered_bytes
        return items <= MAX_BUFFERED_ITEMS // 2 and size <= MAX_BUFFERED_BYTES // 2

    def _finish(self, state: EndState) -> None:
        self.end = state
        if self._held_back:
            self._hold_back(False)
        self._wake()
        self._on_settled(self)

    def _hold_back(self, value: bool) -> None:
        self._held_back = value
        if self._current is not None:
            self._current.hold_back(value)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class IncomingConnection:
    """One accepted connection: from its handshake to its close.

    Owned by the listener, which gives ``claim`` to look the subject up.
    """

    def __init__(
        self,
        claim: Callable[["IncomingConnection", RequesterEnd], ResponseReceiver | None],
        *,
        on_closed: Callable[["IncomingConnection"], None],
        limits: FrameLimits,
        handshake_timeout: float,
    ) -> None:
        self._claim = claim
        self._on_closed = on_closed
        self._end = RequesterEnd()
        self._receiver: ResponseReceiver | None = None
        self._limits = limits
        # 64 KiB for whoever may connect; large items only from a worker that was asked for.
        self.connection = FrameConnection(self, limits=_HANDSHAKE_LIMITS)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(handshake_timeout, self.connection.reset)

    def frame_received(self, message: TwoPartMessage) -> None:
        """Take one frame of the worker."""
        try:
            event = self._end.receive(message)
        except ProtocolError as error:
            self.protocol_failed(error)
            return
        match event:
            case RequesterEvent.ITEM if self._receiver is not None:
                self._item(message.data, self._receiver)
            case RequesterEvent.HANDSHAKE:
                self._handshake()
            case RequesterEvent.REFUSAL if self._receiver is not None:
                assert self._end.prologue is not None  # noqa: S101 -- set by receive()
                self._receiver.refuse(self._end.prologue)
                self.connection.close()
            case RequesterEvent.SENTINEL:
                self._sentinel()
            case _:
                pass

    def _handshake(self) -> None:
        self._timer.cancel()
        self._receiver = self._claim(self, self._end)
        if self._receiver is None:
            self.connection.reset()
        else:
            self.connection.allow(self._limits)
            self._receiver.attach(self)

    def _item(self, body: bytes, receiver: ResponseReceiver) -> None:
        if receiver.receive_body(body):
            self._end.advance(RequesterEvent.FINAL)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_CLOSE_TIMEOUT, self.connection.close)

    def _sentinel(self) -> None:
        if self._receiver is not None:
            self._receiver.detach(self, "the worker ended it without a final", orderly=True)
        self.connection.close()

    def protocol_failed(self, error: ProtocolError) -> None:
        """A frame that is not allowed: tell the worker, end."""
        if self._receiver is None:
            self.connection.reset()
            return
        self.send(KILL_FRAME)
        self.connection.close()
        self._receiver.detach(self, f"the worker broke the protocol: {error}", orderly=True)

    def peer_finished(self) -> None:
        """A FIN: after the sentinel expected, before the final a loss."""
        if self._receiver is not None:
            self._receiver.detach(self, "the worker closed the connection", orderly=False)
        self.connection.close()

    def connection_lost(self, error: PublishError | None) -> None:
        """The connection is gone."""
        self._timer.cancel()
        if self._receiver is not None:
            why = str(error) if error else "the connection was closed"
            self._receiver.detach(self, why, orderly=False)
        self._on_closed(self)

    def send(self, frame: bytes) -> None:
        """Write a control frame; a connection that is gone needs none."""
        try:
            self.connection.write(frame)
        except PublishError:
            return
        self.connection.flush()
        if frame is KILL_FRAME:
            self.connection.close()

    def hold_back(self, value: bool) -> None:
        """Stop or resume reading."""
        if value:
            self.connection.pause_reading()
        else:
            self.connection.resume_reading()

    def close(self) -> None:
        """Kill the stream that is received here, and close."""
        if self._receiver is not None:
            self._receiver.kill()
        self.connection.close()

    def discard(self) -> None:
        """A newer worker serves the stream: this one's subject is spent."""
        self._receiver = None
        self.connection.reset()


def _item_of(annotated: Annotated) -> object:
    if annotated.event == "error":
        return _response_error(annotated)
    return annotated.data


def _response_error(annotated: Annotated) -> ResponseError:
    comments = ", ".join(annotated.comment or ()) or "unknown error"
    return read_error(annotated.error or DynamoError(error_type="Unknown", message=comments))
