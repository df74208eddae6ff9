"""Recorded bytes made readable: a request's payload, or one direction of a back-channel.

Pure: bytes in, JSON-able records out. Nothing here raises for broken bytes; what is wrong with
them is part of the record.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from dialback.cli.inspection import refusal_of, shown_value
from dialback.errors import ProtocolError
from dialback.outcomes import Delivery
from dialback.transport.messages import (
    ControlMessage,
    ItemWrapper,
    PayloadCodec,
    decode_control,
    decode_handshake,
    decode_item,
)
from dialback.transport.two_part import (
    MAX_DATA_BYTES,
    PREFIX,
    FrameLimits,
    TwoPartDecoder,
    TwoPartMessage,
    decode,
    encode,
    salvage_header,
)

_LIMITS: Final = FrameLimits(header=MAX_DATA_BYTES)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a recording: where it begins, its checksum, its content."""

    offset: int
    checksum: int
    message: TwoPartMessage

    @property
    def checksum_state(self) -> str:
        """``none`` (0 was written, as Dynamo's releases do), ``ok`` or ``wrong``."""
        if not self.checksum:
            return "none"
        again = encode(self.message.header, self.message.data, checksum=True)
        return "ok" if PREFIX.unpack_from(again)[2] == self.checksum else "wrong"


def frames_in(recording: bytes) -> Iterator[Frame]:
    """Yield the frames of a recording.

    Raises:
        ProtocolError: After the last good one, if what follows is no frame or cut off.
    """
    decoder = TwoPartDecoder(_LIMITS)
    decoder.receive_data(recording)
    while True:
        offset = len(recording) - decoder.buffered
        message = decoder.next_message()
        if message is None:
            break
        yield Frame(offset, PREFIX.unpack_from(recording, offset)[2], message)
    if decoder.buffered:
        raise ProtocolError(
            f"the recording ends inside a frame: {decoder.buffered} bytes at offset {offset}"
        )


def is_stream(recording: bytes) -> bool:
    """Whether a recording looks like a back-channel, and not like a request's payload."""
    try:
        first = next(frames_in(recording), None)
    except ProtocolError:
        return False
    if first is None or first.message.kind == "header-and-data":
        return False
    if first.message.kind == "header-only":
        return _is_back_channel_header(first.message.header)
    return first.message.kind == "data-only" and item_in(first.message.data) is not None


def _is_back_channel_header(header: bytes) -> bool:
    for read in (decode_handshake, decode_control):
        try:
            read(header)
        except ProtocolError:
            continue
        return True
    try:
        document: object = orjson.loads(header)
    except ValueError:
        return False
    return isinstance(document, dict) and "error" in document


# --- a request --------------------------------------------------------------------------


def request_record(payload: bytes, max_bytes: int) -> dict[str, Any]:
    """Return a request's payload as a record; field ``refusal`` is ``None`` if it is served."""
    try:
        message = decode(payload)
    except ProtocolError:
        message = TwoPartMessage(salvage_header(payload) or b"")
        kind = "broken"
    else:
        kind = message.kind
    control = document_in(message.header)
    refusal = refusal_of(Delivery(payload=payload))
    return {
        "input": "request",
        "bytes": len(payload),
        "frame": _prefix_record(payload, kind, message),
        "control": control,
        "connection_info": _connection_info(control),
        "codec": _codec_of(control),
        **_body(message, _codec_of(control), max_bytes),
        "served": refusal is None,
        "refusal": refusal,
    }


def _body(message: TwoPartMessage, codec: str, max_bytes: int) -> dict[str, Any]:
    if not message.data:
        return {"body": None, "body_truncated": False}
    return shown_value(message.data, codec, max_bytes)


def _prefix_record(payload: bytes, kind: str, message: TwoPartMessage) -> dict[str, Any]:
    if len(payload) < PREFIX.size:
        return {"kind": kind, "problem": f"shorter than the prefix of {PREFIX.size} bytes"}
    header_size, data_size, checksum = PREFIX.unpack_from(payload)
    return {
        "kind": kind,
        "header_bytes": header_size,
        "data_bytes": data_size,
        "checksum": "unknown" if kind == "broken" else Frame(0, checksum, message).checksum_state,
        "trailing_bytes": max(0, len(payload) - PREFIX.size - header_size - data_size),
    }


def document_in(header: bytes) -> Any:
    """Return a header's JSON, or ``None``."""
    try:
        return orjson.loads(header)
    except ValueError:
        return None


def _connection_info(control: Any) -> Any:
    """Return the JSON inside the JSON: the ``info`` document, with its transport."""
    try:
        named = control["connection_info"]
        return {"transport": named["transport"], "info": orjson.loads(named["info"])}
    except (KeyError, TypeError, ValueError):
        return None


def _codec_of(control: Any) -> str:
    try:
        named = control["payload_codec"]
    except (KeyError, TypeError):
        return PayloadCodec.JSON.value
    return named if isinstance(named, str) else PayloadCodec.JSON.value


# --- parts ------------------------------------------------------------------------------


def control_in(message: TwoPartMessage) -> ControlMessage | None:
    """Return the control frame that a message is, or ``None``."""
    if message.kind != "header-only":
        return None
    try:
        return decode_control(message.header)
    except ProtocolError:
        return None


def item_in(data: bytes) -> tuple[ItemWrapper, str] | None:
    """Return the wrapper in a data-only frame and its codec: the frame does not name it."""
    for codec in PayloadCodec:
        try:
            return decode_item(data, codec), codec.value
        except ProtocolError:
            continue
    return None
