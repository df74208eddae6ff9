"""One accepted connection of a requester: from its handshake to its close.

A worker that keeps connections takes the next stream on it: then it waits for a handshake again.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from dialback.errors import ProtocolError, PublishError
from dialback.transport.connection import FrameConnection
from dialback.transport.fencing import Verdict
from dialback.transport.line import LineEnd
from dialback.transport.messages import CallHomeHandshake, ResumeOffer
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import (
    KILL_FRAME,
    EndState,
    RequesterEnd,
    RequesterEvent,
    RequesterState,
)
from dialback.transport.resume_frames import RELEASE_FRAME, superseded_frame
from dialback.transport.two_part import CONTROL_LIMITS, FrameLimits, TwoPartMessage

_CLOSE_TIMEOUT: Final = 10.0  # seconds from the stream's end to the worker's own
IDLE_TIMEOUT: Final = 60.0
"""Seconds that a connection may be open between two streams; its worker closes it sooner."""


class AcceptedConnection(FrameConnection):
    """A connection of a requester, which a forked child has to let go of."""

    @property
    def descriptor(self) -> int:
        """Return the number of its file; -1 if it is gone."""
        if self._transport is None:
            return -1
        number: int = self._transport.get_extra_info("socket").fileno()
        return number


class IncomingConnection:
    """One worker's connection, on its way to the stream that it names.

    Attributes:
        offer: What the worker announced for a resumable stream, or ``None``.
    """

    def __init__(
        self,
        claim: Callable[[CallHomeHandshake], ResponseReceiver | None],
        *,
        on_closed: Callable[["IncomingConnection"], None],
        limits: FrameLimits,
        handshake_timeout: float,
    ) -> None:
        """Wait for the handshake.

        Args:
            claim: Looks the subject up.
            on_closed: Called when the connection is gone.
            limits: Of frames once the handshake is accepted.
            handshake_timeout: Seconds for the first frame.
        """
        self.offer: ResumeOffer | None = None
        self._claim = claim
        self._on_closed = on_closed
        self._end = RequesterEnd()
        self._receiver: ResponseReceiver | None = None
        self._dismissed = False
        self._limits = limits
        # 64 KiB for whoever may connect; large items only from a worker that was asked for.
        self.connection = AcceptedConnection(self, limits=CONTROL_LIMITS)
        loop = asyncio.get_running_loop()
        self._handshaking = loop.call_later(handshake_timeout, self.connection.reset)
        self._closing: asyncio.TimerHandle | None = None

    # --- FrameHandler -----------------------------------------------------------------

    def frame_received(self, message: TwoPartMessage) -> None:
        """Take one frame of the worker."""
        if self._dismissed:
            return
        final_seen = self._end.state is RequesterState.FINAL_SEEN
        try:
            event = self._end.receive(message)
        except ProtocolError as error:
            self.protocol_failed(error)
            return
        match event:
            case RequesterEvent.HANDSHAKE:
                assert self._end.handshake is not None  # noqa: S101 -- set by receive()
                self._handshake(self._end.handshake)
            case RequesterEvent.REFUSAL if self._receiver is not None:
                assert self._end.prologue is not None  # noqa: S101 -- set by receive()
                self._receiver.refuse(self._end.prologue)
                self.close_later()  # the worker's sentinel is under way
            case RequesterEvent.SENTINEL if final_seen and self._reusable():
                self._await_next()
            case RequesterEvent.SENTINEL:
                self._sentinel()
            case _:
                pass

    def data_parts_received(self, parts: list[bytes]) -> None:
        """Take data-only frames of the worker: items, as a rule."""
        if self._dismissed:
            return
        receiver, taken = self._receiver, 0
        if receiver is not None and self._end.state is RequesterState.STREAMING:
            was_over = receiver.end is not None
            taken = receiver.receive_bodies(parts)
            if taken:
                self._end.advance(RequesterEvent.FINAL)
            elif was_over:
                self.send(KILL_FRAME)  # an item broke the stream off, and no final came behind it
            if receiver.end is not None:
                self.close_later()
            if not taken:
                return
        for part in parts[taken:]:  # they come when they should not
            self.frame_received(TwoPartMessage(data=part))

    def _handshake(self, handshake: CallHomeHandshake) -> None:
        self._handshaking.cancel()
        receiver, offer = self._claim(handshake), handshake.offer
        verdict = Verdict.SPENT if receiver is None else receiver.judge(offer)
        if receiver is None or verdict is Verdict.SPENT:
            self.connection.reset()
            return
        self.connection.allow(self._limits)
        if verdict is Verdict.OUTRANKED:
            self.dismiss(receiver.delivery)
        elif verdict is Verdict.NOT_FIRST:
            self._dismiss(receiver.answer())
        else:
            self.offer = offer if receiver.resumable else None
            self._receiver = receiver
            receiver.attach(self)

    def _reusable(self) -> bool:
        complete = self._receiver is not None and self._receiver.end is EndState.COMPLETE
        return complete and self.offer is not None and self.offer.reuse

    def _await_next(self) -> None:
        """Tell the worker that its stream has arrived; wait for the handshake of the next one."""
        assert self._receiver is not None  # noqa: S101 -- see _reusable()
        self._receiver.release(self)
        self._receiver = self.offer = None
        self._end = RequesterEnd()
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self.connection.turn_to(self, CONTROL_LIMITS)
        loop = asyncio.get_running_loop()
        self._handshaking = loop.call_later(IDLE_TIMEOUT, self.connection.close)
        self._write(RELEASE_FRAME)  # at once: the caller's process may end when it has the items

    def _sentinel(self) -> None:
        self._detach(LineEnd.SENTINEL, "the worker ended it without a final")
        self._close()

    def protocol_failed(self, error: ProtocolError) -> None:
        """A frame that is not allowed: tell the worker, end."""
        if self._dismissed:
            self.connection.close()
        elif self._receiver is None:
            self.connection.reset()
        else:
            self.send(KILL_FRAME)
            self._detach(LineEnd.VIOLATION, f"the worker broke the protocol: {error}")

    def peer_finished(self) -> None:
        """A FIN: after the sentinel expected, before the final a loss."""
        self._detach(LineEnd.LOST, "the worker closed the connection")
        self._close()

    def connection_lost(self, error: PublishError | None) -> None:
        """The connection is gone."""
        self._handshaking.cancel()
        if self._closing is not None:
            self._closing.cancel()
        self._detach(LineEnd.LOST, str(error) if error else "the connection was closed")
        self._receiver = None
        self._on_closed(self)

    def _detach(self, how: LineEnd, why: str) -> None:
        if self._receiver is not None:
            self._receiver.detach(self, how, why)

    def _close(self) -> None:
        """Close once the worker has read what is written; a frozen one reads nothing."""
        self.close_later()
        self.connection.close()

    # --- the stream's side ------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Write a frame; a connection that is gone needs none. A kill is the last one.

        What the worker still writes is dropped; see :meth:`dismiss` for why it is read.
        """
        if self._dismissed:
            return
        self._write(frame)
        if frame is KILL_FRAME:
            self._dismissed = True
            self._in_its_own_turn(self._leave)

    def _write(self, frame: bytes) -> None:
        self.connection.write_now(frame)

    def hold_back(self, value: bool) -> None:
        """Stop or resume reading."""
        if value:
            self.connection.pause_reading()
        else:
            self.connection.resume_reading()

    def close_later(self) -> None:
        """Give the worker a while to close. Asked again, it is the same while.

        Then what is unsent is dropped: a close would wait for a worker that is frozen.
        """
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(_CLOSE_TIMEOUT, self.connection.abort)

    def close(self) -> None:
        """Kill the stream that is received here, and close: at once, or when its worker does."""
        if self._receiver is not None:
            self._receiver.kill()
        if self._reusable():  # on a connection that was kept a FIN proves nothing
            self._write(RELEASE_FRAME)
        if not self._dismissed:
            self.connection.close()

    def discard(self) -> None:
        """A newer worker serves the stream: this one's subject is spent."""
        self._receiver = None
        self._dismissed = True
        self._in_its_own_turn(self.connection.reset)

    def dismiss(self, delivery: int) -> None:
        """Tell a worker that delivery ``delivery`` serves the stream, and drop its frames.

        The worker closes: what we close on with its frames unread is a reset, and that could
        overtake what we say.
        """
        self._dismiss(superseded_frame(delivery))

    def _dismiss(self, frame: bytes) -> None:
        self._receiver = None
        self._dismissed = True
        self._in_its_own_turn(self._take_leave, frame)

    def _take_leave(self, frame: bytes) -> None:
        self._write(frame)
        self._leave()

    def _leave(self) -> None:
        self.connection.half_close()
        self.connection.resume_reading()
        self.close_later()

    def _in_its_own_turn(self, do: Callable[..., None], *arguments: object) -> None:
        """Do what may fail on a dead connection where no other connection is being served."""
        asyncio.get_running_loop().call_soon(do, *arguments)
