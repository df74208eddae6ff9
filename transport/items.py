"""Request bodies and response items in either codec, written at full speed.

An item's wrapper is the same for every item, so its bytes are constants round the encoded
value: one encoder call and one join for each item. No I/O.

Source: protocol sections 3 and 6.3 to 6.5.
"""

from typing import Any, Final

import msgspec
import orjson

from dialback.errors import DeserializationError, SerializationError
from dialback.transport.messages import Annotated, DynamoError, ItemWrapper, PayloadCodec
from dialback.transport.two_part import data_prefix

_JSON_OPEN: Final = b'{"data":{"data":'
_JSON_CLOSE: Final = b'},"complete_final":false}'
_MSGPACK_OPEN: Final = b"\x82\xa4data\x81\xa4data"
_MSGPACK_CLOSE: Final = b"\xaecomplete_final\xc2"


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


_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder(enc_hook=_to_builtin)
_msgpack_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()
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
        if codec is PayloadCodec.JSON:
            return orjson.dumps(value, _to_builtin)
        return _msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SerializationError(f"cannot write a value as {codec}: {error}") from error


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
    if codec is PayloadCodec.JSON:
        return b"".join((_JSON_OPEN, encode_value(value, codec), _JSON_CLOSE))
    return b"".join((_MSGPACK_OPEN, encode_value(value, codec), _MSGPACK_CLOSE))


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
