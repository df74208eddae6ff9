"""The three frames that only requesters of ours send, and only to workers that announced it.

``{"resume": k, "fruitless": f, ...}``, with the delivered items as data part if the requester
keeps them, answers a resumable handshake. ``{"superseded": n}`` tells a worker that delivery
n serves the stream. ``{"release": 1}`` tells one that keeps connections that its stream has
arrived to the end, and that the next one may come. Bytes in, values out; no I/O.
Source: overview section 4.
"""

from collections.abc import Iterable
from typing import Annotated as Constrained
from typing import Any, Final, TypeAlias

import msgspec

from dialback.errors import DeserializationError, ProtocolError
from dialback.transport.items import decode_value
from dialback.transport.messages import PayloadCodec, ResumeAnswer
from dialback.transport.two_part import TwoPartMessage, encode

_Count = Constrained[int, msgspec.Meta(ge=0)]
_Hex = Constrained[str, msgspec.Meta(pattern="^[0-9a-f]{0,16}$")]


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    resume: _Count
    fruitless: _Count
    digest: _Hex = ""
    waited_ms: _Count = 0


class _Superseded(msgspec.Struct, frozen=True):
    superseded: _Count


class _Release(msgspec.Struct, frozen=True):
    release: _Count


class _KeptItem(msgspec.Struct, frozen=True):
    data: msgspec.Raw = msgspec.Raw()
    event: str | None = None


class _KeptWrapper(msgspec.Struct, frozen=True):
    data: _KeptItem


_KeptDecoder: TypeAlias = msgspec.json.Decoder[_KeptWrapper] | msgspec.msgpack.Decoder[_KeptWrapper]

_answer_decoder = msgspec.json.Decoder(_Answer)
_superseded_decoder = msgspec.json.Decoder(_Superseded)
_release_decoder = msgspec.json.Decoder(_Release)
_kept_json_decoder = msgspec.json.Decoder(_KeptWrapper)
_kept_msgpack_decoder = msgspec.msgpack.Decoder(_KeptWrapper)
_json_encoder = msgspec.json.Encoder()
_msgpack_encoder = msgspec.msgpack.Encoder()
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)

RELEASE_FRAME: Final = encode(_json_encoder.encode(_Release(1)))
"""In place of the requester's close, at the end of a stream whose connection is kept."""


def answer_frame(
    answer: ResumeAnswer, history: Iterable[bytes] | None, codec: PayloadCodec
) -> bytes:
    """Return the frame of an answer.

    Args:
        answer: What to say; ``delivered`` is not looked at.
        history: Bodies of the delivered items as they were received, if they were kept. Their
            values are written as they came; an error item is a null.
        codec: Codec of the stream.
    """
    document = _Answer(answer.resume, answer.fruitless, answer.digest, answer.waited_ms)
    data = b"" if history is None else _values_of(history, codec)
    return encode(_json_encoder.encode(document), data)


def _values_of(history: Iterable[bytes], codec: PayloadCodec) -> bytes:
    if codec is PayloadCodec.JSON:
        return _json_encoder.encode([_value(_kept_json_decoder, body) for body in history])
    return _msgpack_encoder.encode([_value(_kept_msgpack_decoder, body) for body in history])


def _value(decoder: _KeptDecoder, body: bytes) -> msgspec.Raw | None:
    try:
        item = decoder.decode(body).data
    except _UNREADABLE:
        return None
    return None if item.event == "error" or not bytes(item.data) else item.data


def is_answer(message: TwoPartMessage) -> bool:
    """Whether a frame is an answer; its data part is not looked at."""
    try:
        _answer_decoder.decode(message.header)
    except _UNREADABLE:
        return False
    return True


def read_answer(message: TwoPartMessage, codec: PayloadCodec) -> ResumeAnswer:
    """Return the answer in a frame.

    Raises:
        ProtocolError: If it is none, or its items are not as many as it says.
    """
    try:
        document = _answer_decoder.decode(message.header)
    except _UNREADABLE as error:
        raise ProtocolError(f"not an answer to a handshake: {error}") from error
    return ResumeAnswer(
        resume=document.resume,
        fruitless=document.fruitless,
        delivered=_delivered(message.data, document.resume, codec) if message.data else None,
        digest=document.digest,
        waited_ms=document.waited_ms,
    )


def _delivered(data: bytes, count: int, codec: PayloadCodec) -> list[Any]:
    try:
        delivered = msgspec.convert(decode_value(data, codec), list[Any])
    except (DeserializationError, msgspec.ValidationError) as error:
        raise ProtocolError(f"delivered items: {error}") from error
    if len(delivered) != count:
        raise ProtocolError(f"an answer for {count} items came with {len(delivered)}")
    return delivered


def superseded_frame(delivery: int) -> bytes:
    """Return the frame that tells a worker which delivery serves the stream."""
    return encode(_json_encoder.encode(_Superseded(delivery)))


def read_superseded(message: TwoPartMessage) -> int | None:
    """Return the delivery that serves the stream, or ``None`` if a frame does not say so."""
    if message.data:
        return None
    try:
        return _superseded_decoder.decode(message.header).superseded
    except _UNREADABLE:
        return None


def is_release(message: TwoPartMessage) -> bool:
    """Whether a frame says that the stream has arrived to its end."""
    if message.data:
        return False
    try:
        return _release_decoder.decode(message.header).release == 1
    except _UNREADABLE:
        return False
