"""The worker's end of a response stream, on a connection: write items, hear stop and kill.

:class:`~dialback.transport.response_stream.WorkerEnd` says what may be written; this file
writes it. Items between prologue and final need not ask. Source: protocol section 7.
"""

import asyncio
from collections.abc import Callable
from types import EllipsisType
from typing import Final

from dialback.errors import ProtocolError, PublishError, StreamSupersededError
from dialback.scopes import Latch
from dialback.transport.connection import FrameConnection
from dialback.transport.items import data_frame
from dialback.transport.messages import (
    PayloadCodec,
    ResponseStreamPrologue,
    ResumeAnswer,
    ResumeOffer,
)
from dialback.transport.response_stream import (
    SENTINEL_FRAME,
    WorkerEnd,
    WorkerEvent,
    WorkerState,
)
from dialback.transport.resume_frames import read_answer
from dialback.transport.two_part import (
    CONTROL_LIMITS,
    MAX_CONTROL_BYTES,
    Frame,
    FrameLimits,
    TwoPartMessage,
)

LINGER: Final = 10.0
"""Seconds to wait for the requester's FIN after the sentinel, as Dynamo does."""

_ANSWER_LIMITS: Final = FrameLimits(header=MAX_CONTROL_BYTES)


class ResponseSender:
    """Writes one response stream.

    Attributes:
        address: What was dialled, as text.
        dials: Dial attempts it took.
        stopped: Whether the requester asked to stop (true after a kill too).
        killed: Whether the requester sent kill, or broke the protocol.
        superseded: Whether the requester said that a newer delivery serves the stream.
        not_first: Whether it answered a fresh handshake: it has, or had, another worker.
        left_early: Whether its FIN came before the sentinel was queued: it proves nothing.
        released: Whether the requester said that it has the whole stream.
        lost: Why the connection was lost, or ``None``.
    """

    def __init__(
        self,
        *,
        send_timeout: float = 60.0,
        linger: float = LINGER,
        connection: FrameConnection | None = None,
        keep: Callable[[FrameConnection], None] | None = None,
    ) -> None:
        """Begin.

        Args:
            send_timeout: Seconds without progress after which a write has failed.
            linger: Seconds to wait for the requester's FIN at the end.
            connection: One that is open and serves no stream; a new one by default.
            keep: Takes the connection over when the requester has received the stream and
                leaves it open.
        """
        self.address = ""
        self.dials = 1
        self.stopped = False
        self.killed = False
        self.superseded = False
        self.not_first = False
        self.left_early = False
        self.released = False
        self.lost: PublishError | None = None
        self._end = WorkerEnd()
        self._linger = linger
        self._final_queued = False
        self._sentinel_queued = False
        self._listener: Callable[[WorkerEvent], None] | None = None
        self._peer_finished = Latch()
        self._answered = Latch()
        self._keep = keep
        self._kept = False
        self._reused = connection is not None
        if connection is None:
            connection = FrameConnection(self, limits=CONTROL_LIMITS, send_timeout=send_timeout)
        else:
            connection.turn_to(self, CONTROL_LIMITS)
        self.connection = connection

    @property
    def peer_closed(self) -> bool:
        """Whether the requester has the whole stream, if its sentinel has left.

        It said so, or sent its FIN. On a connection that was kept a FIN says nothing: it may have
        been under way before the handshake.
        """
        return self.released or (self.connection.peer_done and not self._reused)

    @property
    def fresh(self) -> bool:
        """Whether the handshake said that no answer is waited for."""
        return self._end.fresh

    # --- FrameHandler -----------------------------------------------------------------

    def frame_received(self, message: TwoPartMessage) -> None:
        """Take a control frame, an answer or the news of a newer worker."""
        event = self._end.receive(message)
        if event is WorkerEvent.ANSWER and not self.fresh:
            self.connection.allow(CONTROL_LIMITS)
            self._answered.set()
        elif event is WorkerEvent.SUPERSEDED or event is WorkerEvent.ANSWER:
            self._taken_away(event)
        elif event is WorkerEvent.RELEASE:
            self.released = True
            self._peer_finished.set()
        elif event is not None and self._end.state is not WorkerState.LINGER:
            self._cancelled(event)

    def data_parts_received(self, parts: list[bytes]) -> None:
        """Take data-only frames, which a requester has no business to send."""
        for part in parts:
            self.frame_received(TwoPartMessage(data=part))

    def _taken_away(self, event: WorkerEvent) -> None:
        if self.superseded or self.not_first or self.killed:
            return
        self.superseded = event is WorkerEvent.SUPERSEDED
        self.not_first = event is WorkerEvent.ANSWER
        self._answered.set()
        if not self.released:  # else the connection is the next stream's
            self.connection.refuse_writes()
        self._tell(event)

    def protocol_failed(self, error: ProtocolError) -> None:
        """Garbage from the requester is a kill (protocol section 7.3)."""
        del error
        self._end.advance(WorkerEvent.VIOLATION)
        if self._end.state is not WorkerState.LINGER:
            self._cancelled(WorkerEvent.VIOLATION)

    def peer_finished(self) -> None:
        """A FIN: after the sentinel the end, before it a half-close."""
        self.left_early = not self._sentinel_queued
        self._peer_finished.set()
        self._answered.set()

    def connection_lost(self, error: PublishError | None) -> None:
        """The connection is gone."""
        self._peer_finished.set()
        self._answered.set()
        if error is None or self._end.state is WorkerState.LINGER:
            return
        self.lost = error
        self._end.advance(WorkerEvent.LOST)
        self._tell(WorkerEvent.LOST)

    def _cancelled(self, event: WorkerEvent) -> None:
        self.stopped = True
        if event is not WorkerEvent.STOP:
            self.killed = True
            self._answered.set()
            self.connection.refuse_writes()
        self._tell(event)

    def _tell(self, event: WorkerEvent) -> None:
        if self._listener is not None:
            self._listener(event)

    def on_event(self, listener: Callable[[WorkerEvent], None]) -> None:
        """Call ``listener`` for each STOP, KILL, VIOLATION, SUPERSEDED and LOST.

        Past ones included; and for an ANSWER to a fresh handshake.
        """
        self._listener = listener
        if self.superseded:
            listener(WorkerEvent.SUPERSEDED)
        elif self.not_first:
            listener(WorkerEvent.ANSWER)
        elif self.killed:
            listener(WorkerEvent.KILL)
        elif self.stopped:
            listener(WorkerEvent.STOP)
        if self.lost is not None:
            listener(WorkerEvent.LOST)

    # --- writing ----------------------------------------------------------------------

    def send_handshake(self, subject: str, offer: ResumeOffer | None = None) -> None:
        """Write the handshake; with an offer that is not fresh :meth:`resume_answer` comes next.

        A fresh one is only queued: what the engine has to say at once leaves with it.

        Raises:
            PublishError: If the connection was lost meanwhile, or the requester ended it.
        """
        if self._end.state is WorkerState.ABORTED:
            raise self.lost or PublishError("ended before the handshake", client_gone=True)
        frame = self._end.handshake(subject, offer)
        if self.fresh:
            self.connection.queue(frame)
            return
        if offer is not None:
            self.connection.allow(_ANSWER_LIMITS)
        self.connection.write(frame)
        self.connection.flush()  # to the transport; a new connection has room for it

    async def resume_answer(self, within: float, codec: PayloadCodec) -> ResumeAnswer:
        """Return what the requester has of the stream.

        Args:
            within: Seconds to wait.
            codec: Codec of the stream, in which the delivered items are written.

        Raises:
            StreamSupersededError: If a newer delivery serves the stream.
            PublishError: If the stream is over (reset, FIN or kill; ``client_gone`` is true);
                if the network failed, there is no answer in time or none that can be read
                (``client_gone`` is false).
        """
        if not await self._answered.wait(within):
            why = f"the requester did not answer the handshake within {within:g} s"
            raise PublishError(why, client_gone=False)
        if self.superseded:
            raise StreamSupersededError(self._end.superseded_by)
        if self._end.answer is None or self.killed:
            raise self.lost or PublishError("the requester ended the stream", client_gone=True)
        try:
            return read_answer(self._end.answer, codec)
        except ProtocolError as error:
            raise PublishError(str(error), client_gone=False) from error

    async def refused(self, within: float) -> bool:
        """Return whether the requester resets the connection within ``within`` seconds.

        There is no positive answer to a handshake; a spent subject shows as a reset
        (protocol section 6.1).
        """
        return await self.connection.wait_closed(within)

    def write_prologue(self) -> None:
        """Queue the prologue: the engine accepted.

        Raises:
            PublishError: If the connection is lost.
        """
        self.connection.write(self._end.prologue())

    def write_refusal(self, prologue: ResponseStreamPrologue) -> None:
        """Queue the error prologue: the engine refused. Only the sentinel may follow.

        Raises:
            PublishError: If the connection is lost.
        """
        self.connection.write(self._end.prologue(prologue))

    def write_item(self, body: bytes) -> None:
        """Queue one item's frame; call :meth:`breathe` after it if the connection's breath is due.

        Raises:
            PublishError: If the connection is lost.
        """
        if self.lost is not None:
            raise self.lost
        self._end.advance(WorkerEvent.ITEM)
        self.connection.write(*data_frame(body))

    def frame_writer(self) -> Callable[[Frame, int], bool]:
        """Return what queues item after item, between prologue and final; the hot path.

        It takes an item's frame, as :func:`~dialback.transport.items.item_framer` made it, and
        the frame's whole length in bytes, and returns whether to call :meth:`breathe`. It goes
        straight to the connection: once this stream has ended nothing may be given to it, as the
        connection may be another stream's.

        Raises:
            PublishError: From what is returned, if the connection is lost, or the requester said
                that it wants no more of this stream (kill, superseded, not the first).
        """
        return self.connection.write_frame

    async def breathe(self) -> None:
        """Wait while the requester is slow; let the loop turn when it has not for long.

        Raises:
            PublishError: If the connection is lost.
        """
        self.connection.flush()
        if self.connection.congested:
            await self.connection.drain()
        else:
            await asyncio.sleep(0)

    def write_final(self, body: bytes) -> None:
        """Queue the complete-final frame.

        Raises:
            PublishError: If the connection is lost.
        """
        self.connection.write(*self._final(body))

    def write_end(self, body: bytes) -> None:
        """Write the complete-final frame and the sentinel, at once: nothing can follow.

        Raises:
            PublishError: If the connection is lost.
        """
        self._write_sentinel(*self._final(body))
        self.connection.flush()

    def _final(self, body: bytes) -> tuple[bytes, bytes]:
        if self.lost is not None:
            raise self.lost
        self._end.advance(WorkerEvent.FINAL)
        self._final_queued = True
        return data_frame(body)

    def _write_sentinel(self, *before: bytes) -> None:
        self.connection.write(*before, SENTINEL_FRAME)
        self._sentinel_queued = True
        self._end.in_order = self._final_queued

    async def finish(self, *, linger: float | EllipsisType | None = ...) -> None:
        """Write the sentinel if it is not queued yet, flush, wait for the requester's FIN, close.

        If the requester says that it has received the stream, that is as good as its FIN, and
        the connection is kept.

        Args:
            linger: Seconds to wait for the FIN; by default those of the constructor. ``None``
                waits as long as the connection lives.

        Raises:
            PublishError: If the connection is lost before every byte has left.
        """
        if self._end.state is not WorkerState.ABORTED and not self._sentinel_queued:
            self._write_sentinel()
        await self.connection.drain_all()
        if self._end.state not in (WorkerState.ABORTED, WorkerState.LINGER):
            # Only now is everything out: until here a kill is a kill.
            self._end.advance(WorkerEvent.SENTINEL)
        await self._peer_finished.wait(self._linger if linger is ... else linger)
        if self.released and self._keep is not None:
            self._kept = True
            self._keep(self.connection)
        else:
            self.connection.close()

    def end_linger(self) -> None:
        """Wait for the requester's FIN no longer: this process is about to end."""
        self._peer_finished.set()

    def abort(self) -> None:
        """Drop what is unsent and close: after a kill, a loss, or when told to.

        A connection that was kept is another stream's.
        """
        self._listener = None
        if not self._kept:
            self.connection.abort()
