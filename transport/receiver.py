"""The requester's end of one response stream: items in the order written, one end.

A :class:`ResponseReceiver` outlives connections. Until the first item it waits for the next
worker when one is lost, and the newest dial wins; a resumable stream waits until its end
(overview section 4). Items are decoded as they arrive, because the final is what ends the
stream (protocol D-18).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from dialback.errors import DialbackError, ProtocolError, ResponseError, StreamInterrupted
from dialback.transport import fencing
from dialback.transport.backlog import Backlog
from dialback.transport.dynamo_errors import (
    STREAM_INTERRUPTED_REASON,
    read_error,
    read_refusal,
)
from dialback.transport.items import NOT_PLAIN, plain_decoder
from dialback.transport.line import Interruption, Line, LineEnd, Resumable
from dialback.transport.messages import (
    Annotated,
    DynamoError,
    PayloadCodec,
    ResponseStreamPrologue,
    ResumeOffer,
    decode_item,
)
from dialback.transport.response_stream import KILL_FRAME, STOP_FRAME, EndState, end_state
from dialback.transport.tally import Tally


class ResponseReceiver:
    """Receives one response stream; iterate it with :meth:`next_item`.

    Attributes:
        subject: The stream subject.
        end: How the stream ended, or ``None``.
        items: Items handed to the caller.
        interruptions: Workers lost before the stream ended.
        resumed: Workers that went on where another one had been lost.
        delivery: Which delivery the last worker served; 0 before, or if it did not say.
        dialled: Whether a worker has dialled back at least once.
        held_back: Whether nothing is read, because the caller is slow.
    """

    def __init__(
        self,
        subject: str,
        codec: PayloadCodec,
        *,
        on_settled: Callable[["ResponseReceiver"], None],
        resume: Resumable | None = None,
        on_interruption: Callable[[Interruption], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            subject: The stream subject.
            codec: Codec of the items.
            on_settled: Called when no further worker may serve the subject.
            resume: How the stream goes on without its worker; ``None`` if it does not.
            on_interruption: Called on the event loop after each interruption.
        """
        self.subject = subject
        self.end: EndState | None = None
        self.items = 0
        self.interruptions = 0
        self.resumed = 0
        self.delivery = 0
        self.dialled = False
        self.held_back = False
        self._codec = codec
        self._on_settled = on_settled
        self._resume = resume
        self._on_interruption = on_interruption
        history_bytes = resume.history_bytes if resume is not None else 0
        self._tally = Tally(resumable=resume is not None, history_bytes=history_bytes)
        self._backlog = Backlog()
        self._plain = plain_decoder(codec)
        self._error: DialbackError | None = None
        self._current: Line | None = None
        self._stopped = False
        self._killed = False
        self._dialled_unread = False
        self._failed = False
        self._patience: asyncio.TimerHandle | None = None

    @property
    def resumable(self) -> bool:
        """Whether another worker may go on with the stream."""
        return self._resume is not None

    @property
    def started(self) -> bool:
        """Whether a first item or the end has arrived."""
        return self._tally.items > 0 or self.end is not None

    @property
    def connected(self) -> bool:
        """Whether a worker is on the line."""
        return self._current is not None

    @property
    def _announced(self) -> bool:
        return self._current is not None and self._current.offer is not None

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
            RuntimeError: If another task waits for the next item.
        """
        backlog = self._backlog
        while not backlog.size:
            if self.end is not None:
                raise _twin(self._error) if self._error is not None else StopAsyncIteration
            await backlog.change()
        item = backlog.take()
        if self.held_back and backlog.roomy:
            self._hold_back(False)
        if isinstance(item, ResponseError):
            try:
                raise item
            finally:
                del item  # or the error, its traceback and this frame would keep each other
        self.items += 1
        return item

    def stop(self) -> None:
        """Ask the worker to finish early; what it has produced still arrives.

        With the worker lost nothing is under way, and the stream ends. Before the first dial
        its worker is told when it comes.
        """
        if self._stopped or self.end is not None:
            return
        self._stopped = True
        if self._current is not None:
            self._current.send(STOP_FRAME)
        elif self.dialled:
            self._finish(EndState.CANCELLED)

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

    def interrupt(self, why: str) -> None:
        """End the stream at once, on both sides; what has arrived can still be read.

        For its caller it is interrupted, unless it was stopped before.
        """
        if self.end is not None:
            return
        if self._current is not None:
            self._current.send(KILL_FRAME)
        self._break_off(why)

    # --- the connections' side --------------------------------------------------------

    def judge(self, offer: ResumeOffer | None) -> fencing.Verdict:
        """Decide whether a worker that dials now may serve the stream.

        One that would replace a worker whose engine has failed may not: the stream is complete,
        and the worker that failed has a while to end it in order.
        """
        serving = fencing.Serving(self._current.offer) if self._current is not None else None
        verdict = fencing.judge(
            offer if self.resumable else None, serving, self._tally.items, dialled=self.dialled
        )
        if verdict is fencing.Verdict.SERVES and self._failed:
            if self._current is not None:
                self._current.close_later()
            self._finish(EndState.COMPLETE)
            return fencing.Verdict.SPENT
        return verdict

    def answer(self) -> bytes:
        """Return the frame that tells a worker which is not the first that it is not."""
        return self._tally.answer(self._codec, history=False)

    def attach(self, line: Line) -> None:
        """A worker has shaken hands and serves the stream from now on."""
        older, self._current = self._current, line
        self.dialled = True
        self._cancel_patience()
        if older is not None:
            self._interrupted_by(LineEnd.LOST, "a newer worker dialled")
        self._dialled_unread = self.held_back
        self.delivery = line.offer.delivery if line.offer is not None else 0
        if self._tally.items:
            self.resumed += 1
        if line.offer is not None and not line.offer.fresh:
            line.send(self._tally.answer(self._codec))
        if self.held_back:
            line.hold_back(True)
        if self._stopped:
            line.send(STOP_FRAME)
        if older is None:
            return
        if older.offer is None:
            older.discard()
        else:
            older.dismiss(self.delivery)

    def release(self, line: Line) -> None:
        """The stream is over, and its connection serves another one from now on."""
        if line is self._current:
            self._current = None

    def refuse(self, prologue: ResponseStreamPrologue) -> None:
        """The engine refused the request."""
        self._error = read_refusal(prologue)
        self._finish(EndState.BROKEN)

    def receive_bodies(self, bodies: Sequence[bytes]) -> int:
        """Take the bodies of data-only frames, up to the final if it is among them.

        Returns:
            How many were taken if the last of them was the final, else 0.
        """
        values: list[Any] = []
        for position, body in enumerate(bodies):
            value = self._plain(body)
            if value is not NOT_PLAIN:
                values.append(value)
                continue
            if values:
                self._put(values, bodies[position - len(values) : position])
                values, self._failed = [], False
            if self.receive_body(body):
                return position + 1
        if values:
            self._put(values, bodies[-len(values) :])
            self._failed = False
        return 0

    def receive_body(self, body: bytes) -> bool:
        """Take the body of a data-only frame; return whether it was the final."""
        try:
            wrapper = decode_item(body, self._codec)
        except ProtocolError as error:
            self._put([ResponseError("Unknown", str(error))], [body])
            return False
        if wrapper.data is not None:
            self._put_item(_item_of(wrapper.data), body)
            self._failed = wrapper.data.event == "error" and self._announced
        elif not wrapper.complete_final:
            self._put([ResponseError("Unknown", "empty response received")], [body])
        if wrapper.complete_final and self.end is None:
            self._finish(end_state(final_seen=True, cancelled=False))
        return wrapper.complete_final

    def detach(self, line: Line, how: LineEnd, why: str) -> None:
        """The worker's connection ended before the final.

        Args:
            line: Which one; an older one changes nothing.
            how: In order or not.
            why: For the error text.
        """
        if line is not self._current or self.end is not None:
            return
        self._current = None
        if self._failed and how is not LineEnd.VIOLATION:
            # After an announced worker's error item nothing can follow but the final.
            self._finish(EndState.COMPLETE)
            return
        self._interrupted_by(how, why)
        if not self._another_may_come(line, how):
            self._break_off(why)
        elif self._resume is not None and self._tally.items:
            # Before the first item the caller's own timeout is the limit.
            loop, seconds = asyncio.get_running_loop(), self._resume.timeout
            why = f"no other worker came within {seconds:g} s ({why})"
            self._patience = loop.call_later(seconds, self._break_off, why)

    def _another_may_come(self, line: Line, how: LineEnd) -> bool:
        if self._stopped or how is LineEnd.VIOLATION:
            return False
        if line.offer is not None:
            return self._tally.items == 0 or not line.offer.unable
        return how is LineEnd.LOST and self._tally.items == 0

    def _interrupted_by(self, how: LineEnd, reason: str) -> None:
        handed_over = how is LineEnd.SENTINEL
        self.interruptions += 1
        # What a worker wrote that dialled while the caller was slow may not have been read.
        self._tally.worker_ended(blameless=handed_over or self._dialled_unread)
        if self._on_interruption is not None:
            interruption = Interruption(
                delivery=self.delivery,
                items=self._tally.items,
                handed_over=handed_over,
                reason=reason,
            )
            asyncio.get_running_loop().call_soon(self._on_interruption, interruption)

    def _break_off(self, why: str) -> None:
        state = end_state(final_seen=False, cancelled=self._stopped or self._killed)
        if state is EndState.BROKEN:
            self._error = StreamInterrupted(self._tally.items, why)
        self._finish(state)

    def _put_item(self, item: object, body: bytes) -> None:
        if isinstance(item, ResponseError) and item.reason == STREAM_INTERRUPTED_REASON:
            if self.end is None:
                self._break_off(item.message)
        else:
            self._put([item], [body])

    def _put(self, items: list[Any], bodies: Sequence[bytes]) -> None:
        if self.end is not None:
            return
        first = self._tally.items == 0
        self._backlog.put(items, self._tally.add(bodies))
        if not self.held_back and self._backlog.full:
            self._hold_back(True)
        if first and not self._announced:
            self._on_settled(self)

    def _finish(self, state: EndState) -> None:
        self.end = state
        self._cancel_patience()
        self._tally.forget_history()
        if self.held_back:
            self._hold_back(False)
        self._backlog.wake()
        self._on_settled(self)

    def _cancel_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _hold_back(self, value: bool) -> None:
        self.held_back = value
        if self._current is not None:
            self._current.hold_back(value)


def _twin(error: DialbackError) -> DialbackError:
    """Return an equal error to raise.

    The traceback of an error that was raised keeps its caller's frames, and with them the stream;
    if the stream kept the error, only the garbage collector could free them.
    """
    kind = type(error)
    twin = kind.__new__(kind, *error.args)
    vars(twin).update(vars(error))
    return twin


def _item_of(annotated: Annotated) -> object:
    if annotated.event == "error":
        return _response_error(annotated)
    return annotated.data


def _response_error(annotated: Annotated) -> ResponseError:
    comments = ", ".join(annotated.comment or ()) or "unknown error"
    return read_error(annotated.error or DynamoError(error_type="Unknown", message=comments))
