"""One TCP connection that carries frames: coalesced writes, back-pressure, bounded waits.

An :class:`asyncio.Protocol` under both ends of the back-channel. It moves bytes and knows
nothing of handshakes or items; what a frame means is the business of its
:class:`FrameHandler`. All calls are made on the event loop.

Writes are joined: those of one loop turn as a rule, those of a stream that writes turn after turn
for as long as :mod:`dialback.transport.pacing` says. So a stream of small items costs few system
calls (docs/performance.md has the figures). What an engine yields without awaiting is bounded by
:attr:`FrameConnection.breath_due`.
"""

import asyncio
import socket
import struct
import time
from contextlib import suppress
from typing import Final, Protocol, cast

from typing_extensions import override

from dialback.errors import ProtocolError, PublishError
from dialback.transport.departures import DEPARTURES
from dialback.transport.pacing import Pacing
from dialback.transport.turns import TURNS
from dialback.transport.two_part import Frame, FrameLimits, TwoPartDecoder, TwoPartMessage

_FLUSH_BYTES: Final = 64 * 1024
_HIGH_WATER_BYTES: Final = 256 * 1024
_MAX_WRITES: Final = 256  # before the writer should breathe
_LARGE_BUFFER: Final = 4096  # bytes; from here on a copy costs more than a system call's vector
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST

_KEEPALIVE_AFTER: Final = 5.0  # seconds that a connection is open
# Linux's defaults (2 h idle) would hold a slot for a vanished requester all that time.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def keepalive_options(system: object) -> list[tuple[int, int, int]]:
    """Return level, name and value of each option to set, of those that ``system`` has.

    TCP_NODELAY is not among them: asyncio and uvloop set it on every connection.
    """
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *(
            (socket.IPPROTO_TCP, getattr(system, name), value)
            for name, value in _KEEPALIVE.items()
            if hasattr(system, name)
        ),
    ]


_OPTIONS: Final = keepalive_options(socket)


class FrameHandler(Protocol):
    """What a connection tells its owner. No method may block or raise."""

    def frame_received(self, message: TwoPartMessage) -> None:
        """One complete frame arrived that is not data-only."""

    def data_parts_received(self, parts: list[bytes]) -> None:
        """Data-only frames arrived, at least one; these are their data parts."""

    def protocol_failed(self, error: ProtocolError) -> None:
        """The bytes are no frames; nothing more will be read."""

    def peer_finished(self) -> None:
        """The peer sent FIN; it may still be reading."""

    def connection_lost(self, error: PublishError | None) -> None:
        """The connection is closed: by us (``None``), or lost."""


class FrameConnection(asyncio.Protocol):
    """Frames over one TCP connection.

    Attributes:
        lost: Why the connection was lost, or ``None`` while it is open or closed by us.
        peer_done: Whether the peer sent FIN.
        breath_due: Whether the writer should let the loop turn before it writes more: it wrote
            much, or for long, without; or the peer reads slowly, see :attr:`congested`.
    """

    def __init__(
        self, handler: FrameHandler, *, limits: FrameLimits, send_timeout: float = 60.0
    ) -> None:
        self.lost: PublishError | None = None
        self.peer_done = False
        self.breath_due = False
        self._handler = handler
        self._decoder = TwoPartDecoder(limits)
        self._send_timeout = send_timeout
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._writes = 0  # since the last flush
        self._pacing = Pacing()
        self._breathe_at = 0.0  # of the pacing; kept here for each write to find at once
        self._turns = TURNS.of(self._loop)
        self._departures = DEPARTURES.of(self._loop)
        self._departs = 0  # at which tick of these, or 0
        self._keepalive: asyncio.TimerHandle | None = None
        self._paused = False
        self._resumed: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._deaf = False
        self._shut = False
        self._high_water = _HIGH_WATER_BYTES

    # --- asyncio.Protocol -------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=self._high_water)
        # Most streams are over before it could matter, and it costs five system calls.
        self._keepalive = self._loop.call_later(_KEEPALIVE_AFTER, _keep_alive, transport)

    @override
    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        decoder, handler = self._decoder, self._handler
        decoder.receive_data(data)
        try:
            while not self._deaf:
                if parts := decoder.next_data_parts():
                    handler.data_parts_received(parts)
                    if not decoder.buffered:
                        return
                    continue
                message = decoder.next_message()
                if message is None:
                    return
                if message.data and not message.header:  # it came in several pieces
                    handler.data_parts_received([message.data])
                else:
                    handler.frame_received(message)
                if not decoder.buffered:
                    return
        except ProtocolError as error:
            self._deaf = True
            self._handler.protocol_failed(error)

    @override
    def eof_received(self) -> bool:
        self.peer_done = True
        self._handler.peer_finished()
        return True  # a half-close is legal: go on writing (protocol D-8)

    @override
    def pause_writing(self) -> None:
        self._paused = self.breath_due = True

    @override
    def resume_writing(self) -> None:
        self._paused = self.breath_due = False
        self._wake()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.lost is None:
            self.lost = _publish_error(exc, peer_done=self.peer_done)
        self._pending.clear()
        self._pending_bytes = 0
        self._deaf = self._shut = True
        self._departs = 0
        if self._keepalive is not None:
            self._keepalive.cancel()
        if not self._closed.done():
            self._closed.set_result(None)
        self._wake()
        handler, self._handler = self._handler, _NOBODY
        self._transport = None  # no reference cycles: they would wait for the garbage collector
        handler.connection_lost(self.lost)

    # --- writing ----------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether the peer reads more slowly than we write: :meth:`drain` before more."""
        return self._paused

    @property
    def open(self) -> bool:
        """Whether bytes can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def both_ways(self) -> bool:
        """Whether both ends write and are read, to the last byte: it can serve another stream."""
        heard = not self.peer_done and not self._deaf and not self._decoder.buffered
        return self.open and not self._shut and heard

    def write(self, *buffers: bytes) -> None:
        """Queue the buffers of one frame; they leave as :mod:`dialback.transport.pacing` says.

        Raises:
            PublishError: If the connection is lost or closed.
        """
        self.write_frame(buffers, sum(map(len, buffers)))

    def queue(self, frame: bytes) -> None:
        """Queue a frame that leaves with what is written next, or at :meth:`flush`."""
        self._pending.append(frame)
        self._pending_bytes += len(frame)

    def write_now(self, frame: bytes) -> None:
        """Write a control frame, and what is queued before it; nothing if that cannot be."""
        if not self._shut:
            self.queue(frame)
            self.flush()

    def write_frame(self, frame: Frame, size: int) -> bool:
        """Queue one frame and return :attr:`breath_due`: :meth:`write` for the hot path.

        Args:
            frame: In one piece or in several.
            size: Its length in bytes.

        Raises:
            PublishError: As :meth:`write`.
        """
        now = time.monotonic()  # not the loop's time: uvloop reads the clock once a turn
        at_once = self._begin(now) if self._shut or not self._writes else False
        self._writes += 1
        if isinstance(frame, bytes):
            self._pending.append(frame)
        else:
            self._pending += frame
        self._pending_bytes += size
        if at_once or self._pending_bytes >= _FLUSH_BYTES:
            self._send()  # the turn goes on, and so does what is counted in it
        if self._writes >= _MAX_WRITES or now > self._breathe_at:
            self.breath_due = True
        return self.breath_due

    def _begin(self, now: float) -> bool:
        """See to it that what is written leaves soon; return whether it should leave at once."""
        if self._shut or not self.open:
            raise self.lost or PublishError("the connection is closed", client_gone=True)
        self._turns.written(self._loop)  # first: so this turn is over when the next is called
        self._loop.call_soon(self._turned)
        at_once = self._pacing.begin(now, self._turns.number)
        self._breathe_at = self._pacing.breathe_at
        return at_once

    def _turned(self) -> None:
        """Flush at the end of a turn, or later."""
        if not self._writes or self._departs:
            return  # they were flushed before; there may be new ones
        now = time.monotonic()
        delay = self._pacing.turned(now)
        self._breathe_at = self._pacing.breathe_at
        if delay > 0:
            self._departs = self._departures.add(self, now, delay, self._loop)
        else:
            self.flush()

    def depart(self, tick: int) -> None:
        """Flush what waits until ``tick``, unless it was flushed before."""
        if tick == self._departs:
            self.flush()

    def flush(self) -> None:
        """Hand what is queued to the transport now."""
        writes, self._writes = self._writes, 0
        self.breath_due = self._paused
        self._departs = 0
        if writes:
            self._pacing.end(time.monotonic(), writes, self._turns.number)
        self._send()

    def _send(self) -> None:
        if not self._pending or self._transport is None or self._transport.is_closing():
            return
        buffers, size = self._pending, self._pending_bytes
        self._pending, self._pending_bytes = [], 0
        if size < _LARGE_BUFFER * len(buffers):
            self._transport.write(b"".join(buffers))
            return
        self._transport.writelines(buffers)
        # Looks at the buffer again: writelines() of Python 3.12.0 to 3.13.1 forgets to pause
        # the writer (CVE-2024-12254).
        self._transport.set_write_buffer_limits(high=self._high_water)

    async def drain(self) -> None:
        """Wait until the transport takes more.

        Raises:
            PublishError: If the connection is lost, or nothing moved for ``send_timeout``
                seconds (then it is aborted).
        """
        self.flush()
        while self._paused and self.open:
            before = self._unsent()
            if not await self._resumed_within(self._send_timeout) and self._unsent() >= before:
                self._stalled()
        if self.lost is not None:
            raise self.lost

    async def drain_all(self) -> None:
        """Wait until every byte is in the kernel.

        Raises:
            PublishError: As :meth:`drain`.
        """
        self._set_high_water(0)
        try:
            await self.drain()
        finally:
            self._set_high_water(_HIGH_WATER_BYTES)

    def _set_high_water(self, size: int) -> None:
        self._high_water = size
        if self._transport is not None and self.open:
            self._transport.set_write_buffer_limits(high=size)

    def _unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0

    async def _resumed_within(self, seconds: float) -> bool:
        self._resumed = self._resumed or self._loop.create_future()
        done, _ = await asyncio.wait((self._resumed,), timeout=seconds)
        return bool(done)

    def _wake(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    def _stalled(self) -> None:
        self.lost = PublishError(
            f"the peer took no bytes for {self._send_timeout:g} s", client_gone=False
        )
        self.abort()

    # --- reading ----------------------------------------------------------------------

    def allow(self, limits: FrameLimits) -> None:
        """Accept frames of other sizes from now on: the peer has shown who it is."""
        self._decoder.allow(limits)

    def turn_to(self, handler: FrameHandler, limits: FrameLimits) -> None:
        """Belong to another handler: one stream is over, and the next one may come."""
        self.flush()
        self._handler = handler
        self._decoder.allow(limits)
        self._pacing = Pacing()

    def pause_reading(self) -> None:
        """Stop reading: TCP holds the peer back."""
        if self._transport is not None and self.open:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._transport is not None and self.open:
            self._transport.resume_reading()

    # --- closing ----------------------------------------------------------------------

    def refuse_writes(self) -> None:
        """Let :meth:`write` and :meth:`write_frame` fail from now on, and close nothing yet."""
        self._shut = True

    def close(self) -> None:
        """Flush, then FIN, in the background. Nothing more is read."""
        self._deaf = True
        self.flush()
        self._shut = True
        if self._transport is not None:
            self._transport.close()

    def half_close(self) -> None:
        """Flush, then FIN; go on reading until the peer closes."""
        self.flush()
        self._shut = True
        if self._transport is None or not self.open:
            return
        try:
            self._transport.write_eof()
        except OSError:  # asyncio has not noticed a reset while it does not read
            self.abort()

    def abort(self) -> None:
        """Close at once; what is unsent is dropped."""
        self._deaf = self._shut = True
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """Close at once with RST: how a handshake is refused (protocol section 6.1)."""
        self._deaf = self._shut = True
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    async def wait_closed(self, timeout: float) -> bool:  # noqa: ASYNC109 -- returns, never raises
        """Return whether the connection closed within ``timeout`` seconds."""
        done, _ = await asyncio.wait((self._closed,), timeout=timeout)
        return bool(done)


class _Nobody:
    """Whom a connection that is gone has nothing to tell."""

    def frame_received(self, message: TwoPartMessage) -> None:
        del message

    def data_parts_received(self, parts: list[bytes]) -> None:
        del parts

    def protocol_failed(self, error: ProtocolError) -> None:
        del error

    def peer_finished(self) -> None:
        pass

    def connection_lost(self, error: PublishError | None) -> None:
        del error


_NOBODY: Final = _Nobody()


def _keep_alive(transport: asyncio.Transport) -> None:
    named = transport.get_extra_info("socket")
    if named is None:
        return
    # uvloop's stand-in makes a socket object for each call; this is one for all of them.
    sock = socket.socket(named.family, named.type, named.proto, fileno=named.fileno())
    try:
        for level, option, value in _OPTIONS:
            sock.setsockopt(level, option, value)
    except OSError:
        pass  # the peer has gone already, or it is no TCP socket
    finally:
        sock.detach()  # the transport closes it


def _publish_error(exc: Exception, *, peer_done: bool) -> PublishError:
    """Classify a lost connection: did the peer leave, or did the network fail?"""
    gone = peer_done or isinstance(exc, ConnectionError)
    return PublishError(f"connection lost: {str(exc) or type(exc).__name__}", client_gone=gone)
