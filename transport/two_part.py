"""The two-part codec: frames of a 24-byte prefix, a header part and a data part.

Bytes in, values out; no I/O. A pull decoder in the manner of h11: ``receive_data`` only
stores, ``next_message`` parses one message or says ``None``. Limits are enforced from the
prefix, before any content is waited for. An error is final: a byte stream cannot be
resynchronised in the middle of a frame.

Source: protocol section 2 (Dynamo's ``TwoPartCodec``): three unsigned 64-bit big-endian
numbers (header length, data length, checksum), then the parts. Releases write checksum 0
and verify none.
"""

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec
import xxhash

from dialback.errors import (
    ChecksumError,
    FrameTooLargeError,
    ProtocolError,
    TruncatedFrameError,
)

PREFIX: Final = struct.Struct(">QQQ")
MAX_CONTROL_BYTES: Final = 64 * 1024
"""Default limit of a header part on the back-channel: handshake, prologue, control."""
MAX_REQUEST_HEADER_BYTES: Final = 128 * 1024
"""Largest control message of a request; Dynamo's requesters refuse more (protocol 2.5)."""
MAX_DATA_BYTES: Final = 64 * 1024 * 1024
"""Default limit of a data part: one item."""

Frame: TypeAlias = bytes | tuple[bytes, ...]
"""A frame to write: in one piece, or in several that follow each other."""

_NO_CHECKSUM: Final = b"\x00" * 8


class TwoPartMessage(msgspec.Struct, frozen=True):
    """A frame's content.

    Attributes:
        header: The header part; empty in a data-only message.
        data: The data part; empty in a header-only message.
    """

    header: bytes = b""
    data: bytes = b""

    @property
    def kind(self) -> str:
        """Which parts are there: ``header-only``, ``data-only``, ``header-and-data``, ``empty``."""
        if self.header:
            return "header-and-data" if self.data else "header-only"
        return "data-only" if self.data else "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLimits:
    """What a decoder accepts, in bytes.

    Attributes:
        header: Largest header part.
        data: Largest data part.
    """

    header: int = MAX_CONTROL_BYTES
    data: int = MAX_DATA_BYTES


def encode(header: bytes = b"", data: bytes = b"", *, checksum: bool = False) -> bytes:
    """Return the frame of one two-part message.

    Args:
        header: Header part.
        data: Data part.
        checksum: Write the XXH3-64 of both parts, as debug builds of Dynamo do. Releases
            write 0, which is the default.
    """
    value = _checksum_of(header, data) if checksum else 0
    return b"".join((PREFIX.pack(len(header), len(data), value), header, data))


def data_prefix(size: int) -> bytes:
    """Return the prefix of a data-only frame of ``size`` bytes, for writing without a copy."""
    return PREFIX.pack(0, size, 0)


CONTROL_LIMITS: Final = FrameLimits(header=MAX_CONTROL_BYTES, data=MAX_CONTROL_BYTES)
"""Of a connection that carries no items: a requester's to its worker, or before a handshake."""
_REQUEST_LIMITS: Final = FrameLimits(header=MAX_REQUEST_HEADER_BYTES)


class TwoPartDecoder:
    """Turns a byte stream into two-part messages.

    Feed it with :meth:`receive_data`, then call :meth:`next_message` until it returns
    ``None``. After an error every further call raises the same error.

    Bytes are joined when a message is complete, not as they come: a large item is copied once,
    however many pieces it arrives in.
    """

    __slots__ = ("_buffer", "_error", "_later", "_later_bytes", "_limits", "_start", "_verify")

    def __init__(self, limits: FrameLimits | None = None, *, verify_checksum: bool = False) -> None:
        self._limits = limits or FrameLimits()
        self._verify = verify_checksum
        self._buffer = b""
        self._start = 0
        self._later: list[bytes] = []
        self._later_bytes = 0
        self._error: ProtocolError | None = None

    def allow(self, limits: FrameLimits) -> None:
        """Accept frames of other sizes from now on."""
        self._limits = limits

    @property
    def buffered(self) -> int:
        """Bytes received and not yet returned: 0 between two frames."""
        return len(self._buffer) - self._start + self._later_bytes

    def receive_data(self, data: bytes) -> None:
        """Store bytes; nothing is parsed here. After an error nothing is stored."""
        if self._error is not None:
            return
        if self._buffer:
            self._later.append(data)
            self._later_bytes += len(data)
        else:
            self._buffer = data  # as a rule: what came before was read to its end

    def next_data_parts(self) -> list[bytes]:
        """Return the data parts of the data-only messages that come next, maybe none.

        The hot path of a stream of small items: what stands in the way (another kind of
        message, one that is not complete or too large) is left to :meth:`next_message`.
        """
        if self._verify or (self._later and not self._gather(PREFIX.size)):
            return []
        buffer, start, limit = self._buffer, self._start, self._limits.data
        end, unpack, size_of_prefix = len(buffer), PREFIX.unpack_from, PREFIX.size
        parts: list[bytes] = []
        while end - start >= size_of_prefix:
            header_size, data_size, _ = unpack(buffer, start)
            first = start + size_of_prefix
            if header_size or not data_size or data_size > limit or data_size > end - first:
                break
            start = first + data_size
            parts.append(buffer[first:start])
        if parts:
            self._advance_to(start)
        return parts

    def next_message(self) -> TwoPartMessage | None:
        """Return the next complete message, or ``None`` when more bytes are needed.

        Raises:
            FrameTooLargeError: As soon as a prefix announces too much, before its
                content is buffered.
            ChecksumError: If verification was asked for and a non-zero checksum is wrong.
        """
        if self._error is not None:
            raise self._error
        if not self._gather(PREFIX.size):
            return None
        header_size, data_size, checksum = PREFIX.unpack_from(self._buffer, self._start)
        limits = self._limits
        if header_size > limits.header or data_size > limits.data:
            raise self._fail(_too_large(header_size, data_size, limits))
        if not self._gather(PREFIX.size + header_size + data_size):
            return None
        return self._take(header_size, data_size, checksum)

    def _gather(self, size: int) -> bool:
        """Have ``size`` bytes in one piece, if they are there."""
        if len(self._buffer) - self._start >= size:
            return True
        if self.buffered < size:
            return False
        self._buffer = b"".join((self._buffer[self._start :], *self._later))
        self._start = 0
        self._later.clear()
        self._later_bytes = 0
        return True

    def _advance_to(self, position: int) -> None:
        if position == len(self._buffer):
            self._buffer, position = b"", 0
        self._start = position

    def _take(self, header_size: int, data_size: int, checksum: int) -> TwoPartMessage:
        first = self._start + PREFIX.size
        middle = first + header_size
        end = middle + data_size
        message = TwoPartMessage(self._buffer[first:middle], self._buffer[middle:end])
        self._advance_to(end)
        if self._verify and checksum:
            computed = _checksum_of(message.header, message.data)
            if computed != checksum:
                raise self._fail(ChecksumError(checksum, computed))
        return message

    def _fail(self, error: ProtocolError) -> ProtocolError:
        self._error = error
        self._buffer = b""
        self._start = 0
        self._later.clear()
        self._later_bytes = 0
        return error


def decode(payload: bytes, *, limits: FrameLimits | None = None) -> TwoPartMessage:
    """Return the two-part message at the start of a whole payload; what follows is ignored.

    This is how a request's payload is read (protocol section 2.4).

    Raises:
        TruncatedFrameError: If the payload is shorter than its prefix announces.
        FrameTooLargeError: If the announced sizes are over the limits.
    """
    if len(payload) < PREFIX.size:
        raise TruncatedFrameError(len(payload), PREFIX.size)
    header_size, data_size, _ = PREFIX.unpack_from(payload)
    limits = limits or _REQUEST_LIMITS
    if header_size > limits.header or data_size > limits.data:
        raise _too_large(header_size, data_size, limits)
    middle = PREFIX.size + header_size
    end = middle + data_size
    if len(payload) < end:
        raise TruncatedFrameError(len(payload), end)
    return TwoPartMessage(payload[PREFIX.size : middle], payload[middle:end])


def salvage_header(payload: bytes) -> bytes | None:
    """Return the header part of a payload whose data part is cut off or too large.

    A message that cannot be served may still say where its requester listens
    (protocol D-1). ``None`` if the header itself is missing, cut off or too large.
    """
    if len(payload) < PREFIX.size:
        return None
    header_size, _, _ = PREFIX.unpack_from(payload)
    end = PREFIX.size + header_size
    if not 0 < header_size <= MAX_REQUEST_HEADER_BYTES or end > len(payload):
        return None
    return payload[PREFIX.size : end]


def _too_large(header_size: int, data_size: int, limits: FrameLimits) -> FrameTooLargeError:
    if header_size > limits.header:
        return FrameTooLargeError("header", header_size, limits.header)
    return FrameTooLargeError("data", data_size, limits.data)


def _checksum_of(header: bytes, data: bytes) -> int:
    digest = xxhash.xxh3_64(header)
    digest.update(data)
    return digest.intdigest()
