import dataclasses
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from dialback.errors import DeserializationError, SerializationError
from dialback.transport.items import (
    NOT_PLAIN,
    data_frame,
    decode_value,
    encode_error_item,
    encode_final,
    encode_item,
    encode_value,
    item_framer,
    plain_decoder,
)
from dialback.transport.messages import DynamoError, PayloadCodec, decode_item
from dialback.transport.two_part import decode
from support.captures import CAPTURES, Capture

JSON, MSGPACK = PayloadCodec.JSON, PayloadCodec.MSGPACK


class Struct(msgspec.Struct):
    n: int


class Model(BaseModel):
    n: int


@dataclasses.dataclass
class Data:
    n: int


JSON_ITEM = (
    "0000000000000000000000000000003000000000000000007b2264617461223a7b2264617461223a7b2269223a30"
    "7d7d2c22636f6d706c6574655f66696e616c223a66616c73657d"
)
MSGPACK_ITEM = (
    "00000000000000000000000000000020000000000000000082a46461746181a46461746181a16900ae636f6d706c"
    "6574655f66696e616cc2"
)
JSON_FINAL = (
    "0000000000000000000000000000001700000000000000007b22636f6d706c6574655f66696e616c223a747275657d"
)
MSGPACK_FINAL = "00000000000000000000000000000011000000000000000081ae636f6d706c6574655f66696e616cc3"


@pytest.mark.parametrize(("codec", "frame"), [(JSON, JSON_ITEM), (MSGPACK, MSGPACK_ITEM)])
def test_an_item_is_the_protocols_example(codec: PayloadCodec, frame: str) -> None:
    assert b"".join(data_frame(encode_item({"i": 0}, codec))).hex() == frame


@pytest.mark.parametrize(("codec", "frame"), [(JSON, JSON_FINAL), (MSGPACK, MSGPACK_FINAL)])
def test_a_final_is_the_protocols_example(codec: PayloadCodec, frame: str) -> None:
    assert b"".join(data_frame(encode_final(codec))).hex() == frame


def test_an_error_item_without_class_is_the_example_of_release_1_3() -> None:
    error = DynamoError(error_type={"Backend": "InvalidArgument"}, message="bad")
    assert b"".join(data_frame(encode_error_item(error, JSON))).hex() == (
        "0000000000000000000000000000007600000000000000007b2264617461223a7b226576656e74223a226572726f"
        "72222c226572726f72223a7b226572726f725f74797065223a7b224261636b656e64223a22496e76616c69644172"
        "67756d656e74227d2c226d657373616765223a22626164227d7d2c22636f6d706c6574655f66696e616c223a6661"
        "6c73657d"
    )


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_every_captured_item_is_written_again_byte_by_byte(captured: Capture) -> None:
    for body in captured.bodies:
        wrapper = decode_item(body, captured.codec)
        if wrapper.complete_final:
            assert encode_final(captured.codec) == body
            continue
        assert wrapper.data is not None
        if wrapper.data.error is not None:
            assert encode_error_item(wrapper.data.error, captured.codec) == body
        else:
            assert encode_item(wrapper.data.data, captured.codec) == body


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_every_captured_request_body_is_read_and_written_again(captured: Capture) -> None:
    body = decode(captured.payload).data
    value = decode_value(body, captured.codec)
    assert isinstance(value["mode"], str)
    assert encode_value(value, captured.codec) == body


@pytest.mark.parametrize("codec", PayloadCodec)
@pytest.mark.parametrize(
    "value", [None, True, 0, -1, 2**63 - 1, 1.5, "", 'é"\n\u2028', [], [1, [2]], {"a": {"b": None}}]
)
def test_plain_values_survive_both_codecs(value: object, codec: PayloadCodec) -> None:
    assert decode_value(encode_value(value, codec), codec) == value


def test_json_is_compact_raw_utf8_with_an_integral_floats_point() -> None:
    assert encode_value({"a": ["é", 1.0, "/"]}, JSON) == '{"a":["é",1.0,"/"]}'.encode()


@pytest.mark.parametrize("codec", PayloadCodec)
@pytest.mark.parametrize(
    "value", [Struct(1), Model(n=1), Data(1)], ids=["msgspec", "pydantic", "dataclass"]
)
def test_models_structs_and_dataclasses_are_written_as_maps(
    value: object, codec: PayloadCodec
) -> None:
    assert decode_value(encode_value([value], codec), codec) == [{"n": 1}]


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize("codec", PayloadCodec)
@pytest.mark.parametrize(
    "value",
    [object(), Data, 2**70, "\ud800", _endless(), {"a": {1: object()}}],
    ids=["object", "class", "big", "surrogate", "endless", "nested"],
)
def test_what_has_no_form_on_the_wire_is_a_serialization_error(
    value: object, codec: PayloadCodec
) -> None:
    with pytest.raises(SerializationError, match=f"cannot write a value as {codec}"):
        encode_item(value, codec)


@pytest.mark.parametrize(
    ("body", "codec"),
    [
        (b"", JSON),
        (b"NaN", JSON),
        (b"[Infinity]", JSON),
        (b'{"n":2} x', JSON),
        (b'"\xff"', JSON),
        (b"[" * 5000, JSON),
        (b"", MSGPACK),
        (b"\x82\xa1n\x02", MSGPACK),
        (b"\xa1\xff", MSGPACK),
        (b"\xc1", MSGPACK),
        (b"\x81\x80\x01", MSGPACK),
        (b"\xdd\xff\xff\xff\xff", MSGPACK),
        (b"\x91" * 5000, MSGPACK),
    ],
)
def test_a_body_that_cannot_be_read_is_a_deserialization_error(
    body: bytes, codec: PayloadCodec
) -> None:
    with pytest.raises(DeserializationError, match=f"request body is not {codec}"):
        decode_value(body, codec)


@pytest.mark.parametrize(
    ("body", "value"),
    [(b'{"n":2}', 123), (b"\x81\xa1n\x02\xc1\xc1", {"n": 2}), (b"\xc0\x00", None)],
)
def test_bytes_after_a_msgpack_value_are_ignored_as_dynamo_does(body: bytes, value: object) -> None:
    assert decode_value(body, MSGPACK) == value


# --- the hot paths ------------------------------------------------------------------------

PLAIN = [
    {"i": 0},
    "x" * 100_000,
    None,
    [1, 2.5, "x"],
    "grüße",
    "",
    0,
    True,
    {"data": {"data": 1}},
    2**63,
]


@pytest.mark.parametrize("codec", PayloadCodec)
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_a_frame_in_pieces_is_the_frame_of_the_item(value: object, codec: PayloadCodec) -> None:
    body = encode_item(value, codec)
    frame, body_size = item_framer(codec)(value)
    assert b"".join([frame] if isinstance(frame, bytes) else frame) == b"".join(data_frame(body))
    assert body_size == len(body)


@pytest.mark.parametrize("codec", PayloadCodec)
def test_a_large_value_is_a_piece_of_its_own_and_a_small_one_is_not(codec: PayloadCodec) -> None:
    large, _ = item_framer(codec)("x" * 100_000)
    assert large[1] == encode_value("x" * 100_000, codec)
    small, _ = item_framer(codec)("x")
    assert isinstance(small, bytes)


@pytest.mark.parametrize("codec", PayloadCodec)
def test_the_streams_of_a_codec_share_what_writes_and_reads_items(codec: PayloadCodec) -> None:
    assert item_framer(codec) is item_framer(codec)
    assert plain_decoder(codec) is plain_decoder(codec)


@pytest.mark.parametrize("codec", PayloadCodec)
def test_a_value_without_a_form_is_told_from_the_framer_too(codec: PayloadCodec) -> None:
    with pytest.raises(SerializationError, match=f"cannot write a value as {codec}"):
        item_framer(codec)(object())


@pytest.mark.parametrize("codec", PayloadCodec)
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_an_ordinary_item_is_read_without_its_wrapper(value: object, codec: PayloadCodec) -> None:
    assert plain_decoder(codec)(encode_item(value, codec)) == value


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_what_is_read_without_the_wrapper_is_what_is_read_with_it(captured: Capture) -> None:
    for body in captured.bodies:
        value = plain_decoder(captured.codec)(body)
        wrapper = decode_item(body, captured.codec)
        plain = wrapper.data is not None and wrapper.data.event is None
        assert (value is NOT_PLAIN) == (not plain)
        if wrapper.data is not None and plain:
            assert value == wrapper.data.data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"data":{"data":',
        b'{"data":{"data":},"complete_final":false}',
        b'{"data":{"data":1},"complete_final":true}',
        b'{"data":{"data":1,"event":"error"},"complete_final":false}',
        b'{"data":{"data":1},"x":{"y":2},"complete_final":false}',
        b'{"data":{"data":1 2},"complete_final":false}',
        b'{"data":{"data":"\xff"},"complete_final":false}',
        b'{"data":{"data":' + b"[" * 100_000 + b'},"complete_final":false}',
        encode_final(JSON),
    ],
    ids=lambda body: repr(body[:60]),
)
def test_everything_else_is_left_to_the_reader_of_wrappers(body: bytes) -> None:
    assert plain_decoder(JSON)(body) is NOT_PLAIN


@pytest.mark.parametrize(
    "inside", [b"", b"\x01\x02", b"\xc1", b"\x01\xa5event\xa5error", b"\xa2\xff\xff"]
)
def test_so_is_everything_else_in_msgpack(inside: bytes) -> None:
    body = b"\x82\xa4data\x81\xa4data" + inside + b"\xaecomplete_final\xc2"
    assert plain_decoder(MSGPACK)(body) is NOT_PLAIN
