"""Any bytes on a back-channel: the two-part decoder.

Whatever the bytes and however they arrive: the same messages and the same error, nothing raised
but a ``ProtocolError``, never more kept than one frame within the limits, and a frame over them
refused from its prefix alone.
"""

import random
from collections.abc import Iterator
from typing import Final

import xxhash

from dialback.errors import FrameTooLargeError, ProtocolError, TruncatedFrameError
from dialback.transport.two_part import (
    PREFIX,
    FrameLimits,
    TwoPartDecoder,
    TwoPartMessage,
    decode,
    encode,
    salvage_header,
)

LIMITS: Final = FrameLimits(header=512, data=256)
_ROOM: Final = PREFIX.size + LIMITS.header + LIMITS.data


def check(stream: bytes) -> None:
    """Fail with an ``AssertionError`` if a promise of the decoder does not hold."""
    for verify in (False, True):
        whole = _decoded([stream], verify=verify)
        assert _decoded(_pieces_of(stream), verify=verify) == whole, "in pieces"
        if verify:
            assert _decoded(_bytes_of(stream), verify=verify) == whole, "byte by byte"
    _check_refusal(stream)
    _check_payload(stream)


def _decoded(
    pieces: Iterator[bytes] | list[bytes], *, verify: bool
) -> tuple[list[TwoPartMessage], str | None]:
    """All messages, and the error after them."""
    decoder = TwoPartDecoder(LIMITS, verify_checksum=verify)
    received: list[TwoPartMessage] = []
    for piece in pieces:
        decoder.receive_data(piece)
        try:
            while (message := decoder.next_message()) is not None:
                assert len(message.header) <= LIMITS.header
                assert len(message.data) <= LIMITS.data
                received.append(message)
        except ProtocolError as error:
            assert decoder.buffered == 0, "nothing is kept after an error"
            return received, repr(error)
        assert decoder.buffered < _ROOM, "more is kept than one frame"
    return received, None


def _bytes_of(stream: bytes) -> Iterator[bytes]:
    return (stream[i : i + 1] for i in range(len(stream)))


def _pieces_of(stream: bytes) -> list[bytes]:
    """Pieces whose sizes depend on the bytes alone, so that a finding can be repeated."""
    chance = random.Random(xxhash.xxh3_64_intdigest(stream))  # noqa: S311 -- not a secret
    pieces: list[bytes] = []
    start = 0
    while start < len(stream):
        size = chance.randint(0, 64)
        pieces.append(stream[start : start + size])
        start += size
    return pieces


def _check_refusal(stream: bytes) -> None:
    """Walk the prefixes; the first one over the limits has to be refused without its content."""
    start = 0
    while start + PREFIX.size <= len(stream):
        header, data, _ = PREFIX.unpack_from(stream, start)
        if header > LIMITS.header or data > LIMITS.data:
            decoder = TwoPartDecoder(LIMITS)
            decoder.receive_data(stream[start : start + PREFIX.size])
            try:
                decoder.next_message()
            except FrameTooLargeError:
                return
            raise AssertionError("a frame over the limits was not refused")
        start += PREFIX.size + header + data


def _check_payload(payload: bytes) -> None:
    """Read the bytes as a request's payload."""
    salvaged = salvage_header(payload)
    assert salvaged is None or salvaged in payload
    try:
        message = decode(payload, limits=LIMITS)
    except (TruncatedFrameError, FrameTooLargeError):
        return
    frame = encode(message.header, message.data)
    assert frame[PREFIX.size :] == payload[PREFIX.size : len(frame)]
    assert decode(frame) == message
    assert (salvaged or b"") == message.header
