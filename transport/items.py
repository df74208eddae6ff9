"""Request bodies and response items in either codec, written at full speed.

An item's wrapper is the same for every item, so its bytes are constants round the encoded
value. Writing, they go out as pieces of the frame, and a large value's bytes are never copied
here; reading, they are recognised, and only the value between them is parsed. No I/O.

Source: protocol sections 3 and 6.3 to 6.5.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import msgspec
import orjson

from dialback.errors import DeserializationError, SerializationError
from dialback.transport.messages import Annotated, DynamoError, ItemWrapper, PayloadCodec
from dialback.transport.two_part import Frame, data_prefix

_WRAPPERS: Final = {
    PayloadCodec.JSON: (b'{"data":{"data":', b'},"complete_final":false}'),
    PayloadCodec.MSGPACK: (b"\x82\xa4data\x81\xa4data", b"\xaecomplete_final\xc2"),
}


def _to_builtin(value: object) -> object:
    """Turn a pydantic model (duck-typed, no import) or a msgspec struct into a dict.

    Dataclasses are written by both encoders themselves.
    """
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    raise TypeError(f"a {type(value).__name__} cannot be serialised")


# orjson returns a small value in a block of 1 KiB that it has cut down. Kept, each one makes the
# heap grow, and the kernel clear a page of it (measured: 0.85 page faults for each item).
_SMALL: Final = 2048

NOT_PLAIN: Final = object()
"""In place of a value: the body is more than a wrapper round one, or not to be read at all."""

_json = msgspec.json.Encoder()
_json_decode = msgspec.json.Decoder().decode
_msgpack = msgspec.msgpack.Encoder(enc_hook=_to_builtin)
_msgpack_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()


def _encode_json(value: object) -> bytes:
    return orjson.dumps(value, _to_builtin)  # a partial with a keyword takes 200 ns more


_ENCODERS: Final[dict[PayloadCodec, Callable[[object], bytes]]] = {
    PayloadCodec.JSON: _encode_json,
    PayloadCodec.MSGPACK: _msgpack.encode,
}
_UNWRITABLE: Final = (TypeError, ValueError, OverflowError, RecursionError)
_FINALS: Final = {
    PayloadCodec.JSON: _json.encode(ItemWrapper(complete_final=True)),
    PayloadCodec.MSGPACK: _msgpack.encode(ItemWrapper(complete_final=True)),
}


def encode_value(value: object, codec: PayloadCodec) -> bytes:
    """Return a user's value as the codec writes it.

    Raises:
        SerializationError: If the value has no form in that codec.
    """
    try:
        return _ENCODERS[codec](value)
    except _UNWRITABLE as error:
        raise _not_written(codec, error) from error


def _not_written(codec: PayloadCodec, error: Exception) -> SerializationError:
    return SerializationError(f"cannot write a value as {codec}: {error}")


def decode_value(body: bytes, codec: PayloadCodec) -> Any:
    """Return the value in a request body.

    Bytes after a msgpack value are ignored, as Dynamo does (protocol section 3.2).

    Raises:
        DeserializationError: If the body is not valid in that codec.
    """
    try:
        if codec is PayloadCodec.JSON:
            return orjson.loads(body)
        return _decode_msgpack(body)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise DeserializationError(f"request body is not {codec}: {error}") from error


def _decode_msgpack(body: bytes) -> Any:
    try:
        return _msgpack_decoder.decode(body)
    except msgspec.DecodeError as error:
        # "... contains N trailing bytes": the value itself is fine.
        position = str(error).rpartition("(byte ")[2].rstrip(")")
        if "trailing" not in str(error) or not position.isdigit():
            raise
        return _msgpack_decoder.decode(body[: int(position)])


def encode_item(value: object, codec: PayloadCodec) -> bytes:
    """Return the body of an item's frame: the wrapper round the engine's value.

    Raises:
        SerializationError: If the value has no form in that codec.
    """
    opening, closing = _WRAPPERS[codec]
    return b"".join((opening, encode_value(value, codec), closing))


@cache
def item_framer(codec: PayloadCodec) -> Callable[[object], tuple[Frame, int]]:
    """Return what makes a data-only frame of an engine's value.

    That function returns the frame, and the bytes of its body. All streams share it: one of its
    own for each of many would be that much more to fetch from memory for every item. It calls the
    encoder itself: each call of Python's takes a tenth of what a small item takes in all.

    Raises:
        SerializationError: From that function, if the value has no form in the codec.
    """
    opening, closing = _WRAPPERS[codec]
    is_json, to_json, to_msgpack = codec is PayloadCodec.JSON, orjson.dumps, _msgpack.encode
    around = len(opening) + len(closing)
    heads = [data_prefix(size) + opening for size in range(_SMALL)]  # to pack one takes 150 ns

    def frame(value: object) -> tuple[Frame, int]:
        try:
            encoded = to_json(value, _to_builtin) if is_json else to_msgpack(value)
        except _UNWRITABLE as error:
            raise _not_written(codec, error) from error
        size = len(encoded) + around
        if size < _SMALL:
            return heads[size] + encoded + closing, size
        return (data_prefix(size) + opening, encoded, closing), size

    return frame


@cache
def plain_decoder(codec: PayloadCodec) -> Callable[[bytes], Any]:
    """Return what reads the body of an ordinary item: the value, or :data:`NOT_PLAIN`.

    A body that begins and ends as ours do, with one whole value in between, can only be an item
    of that value; everything else is left to
    :func:`~dialback.transport.messages.decode_item`.
    """
    opening, closing = _WRAPPERS[codec]
    first, last = len(opening), -len(closing)
    decode = _json_decode if codec is PayloadCodec.JSON else _msgpack_decoder.decode

    def value_in(body: bytes) -> Any:
        if body.startswith(opening) and body.endswith(closing):
            try:
                return decode(body[first:last])
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass
        return NOT_PLAIN

    return value_in


def encode_error_item(error: DynamoError, codec: PayloadCodec) -> bytes:
    """Return the body of an error item's frame."""
    wrapper = ItemWrapper(data=Annotated(event="error", error=error), complete_final=False)
    return (_json if codec is PayloadCodec.JSON else _msgpack).encode(wrapper)


def encode_final(codec: PayloadCodec) -> bytes:
    """Return the body of the complete-final frame."""
    return _FINALS[codec]


def data_frame(body: bytes) -> tuple[bytes, bytes]:
    """Return a data-only frame as the two buffers to write."""
    return data_prefix(len(body)), body
