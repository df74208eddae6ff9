"""One TCP connection that carries frames: coalesced writes, back-pressure, bounded waits.

An :class:`asyncio.Protocol` under both ends of the back-channel. It moves bytes and knows
nothing of handshakes or items; what a frame means is the business of its
:class:`FrameHandler`. All calls are made on the event loop.

Writes are joined once a loop turn, so a stream of small items costs one system call a turn
(measured in benchmarks/); what the engine yields without awaiting is bounded by
:attr:`FrameConnection.overdue`.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final, Protocol, cast

from typing_extensions import override

from dialback.errors import ProtocolError, PublishError
from dialback.transport.two_part import FrameLimits, TwoPartDecoder, TwoPartMessage

_FLUSH_BYTES: Final = 64 * 1024
_HIGH_WATER_BYTES: Final = 256 * 1024
_MAX_WRITES_IN_TURN: Final = 64
_MAX_SECONDS_IN_TURN: Final = 0.002
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST

# Linux's defaults (2 h idle) would hold a slot for a vanished requester all that time.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class FrameHandler(Protocol):
    """What a connection tells its owner. No method may block or raise."""

    def frame_received(self, message: TwoPartMessage) -> None:
        """One complete frame arrived."""

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
    """

    def __init__(
        self, handler: FrameHandler, *, limits: FrameLimits, send_timeout: float = 60.0
    ) -> None:
        self.lost: PublishError | None = None
        self.peer_done = False
        self._handler = handler
        self._decoder = TwoPartDecoder(limits)
        self._send_timeout = send_timeout
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._turn_began = 0.0
        self._writes_in_turn = 0
        self._paused = False
        self._resumed: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._deaf = False
        self._high_water = _HIGH_WATER_BYTES

    # --- asyncio.Protocol -------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=self._high_water)
        _set_options(transport)

    @override
    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._decoder.receive_data(data)
        try:
            while not self._deaf and (message := self._decoder.next_message()) is not None:
                self._handler.frame_received(message)
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
        self._paused = True

    @override
    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.lost is None:
            self.lost = _publish_error(exc, peer_done=self.peer_done)
        self._pending.clear()
        self._pending_bytes = 0
        self._deaf = True
        if not self._closed.done():
            self._closed.set_result(None)
        self._wake()
        self._handler.connection_lost(self.lost)

    # --- writing ----------------------------------------------------------------------

    @property
    def overdue(self) -> bool:
        """Whether the writer should let the loop turn: it wrote much, or for long, without."""
        if self._writes_in_turn == 0:
            return False
        if self._writes_in_turn >= _MAX_WRITES_IN_TURN:
            return True
        return self._loop.time() - self._turn_began > _MAX_SECONDS_IN_TURN

    @property
    def congested(self) -> bool:
        """Whether the peer reads more slowly than we write: :meth:`drain` before more."""
        return self._paused

    @property
    def open(self) -> bool:
        """Whether bytes can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, *buffers: bytes) -> None:
        """Queue the buffers of one frame; they leave at the end of this loop turn.

        Raises:
            PublishError: If the connection is lost or closed.
        """
        if not self.open:
            raise self.lost or PublishError("the connection is closed", client_gone=True)
        if self._writes_in_turn == 0:
            self._turn_began = self._loop.time()
            self._loop.call_soon(self._end_turn)
        self._writes_in_turn += 1
        self._pending.extend(buffers)
        self._pending_bytes += sum(map(len, buffers))
        if self._pending_bytes >= _FLUSH_BYTES:
            self.flush()

    def _end_turn(self) -> None:
        self._writes_in_turn = 0
        self.flush()

    def flush(self) -> None:
        """Hand what is queued to the transport now."""
        if not self._pending or self._transport is None or self._transport.is_closing():
            return
        buffers, self._pending, self._pending_bytes = self._pending, [], 0
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

    def pause_reading(self) -> None:
        """Stop reading: TCP holds the peer back."""
        if self._transport is not None and self.open:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._transport is not None and self.open:
            self._transport.resume_reading()

    # --- closing ----------------------------------------------------------------------

    def close(self) -> None:
        """Flush, then FIN, in the background. Nothing more is read."""
        self._deaf = True
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def half_close(self) -> None:
        """Flush, then FIN; go on reading until the peer closes."""
        self.flush()
        if self._transport is None or not self.open:
            return
        try:
            self._transport.write_eof()
        except OSError:  # asyncio has not noticed a reset while it does not read
            self.abort()

    def abort(self) -> None:
        """Close at once; what is unsent is dropped."""
        self._deaf = True
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """Close at once with RST: how a handshake is refused (protocol section 6.1)."""
        self._deaf = True
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


def _set_options(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _publish_error(exc: Exception, *, peer_done: bool) -> PublishError:
    """Classify a lost connection: did the peer leave, or did the network fail?"""
    gone = peer_done or isinstance(exc, ConnectionError)
    return PublishError(f"connection lost: {str(exc) or type(exc).__name__}", client_gone=gone)
