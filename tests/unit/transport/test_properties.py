"""What must hold for any bytes and any values, not only for the captured ones."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dialback.errors import (
    ConnectionInfoError,
    DeserializationError,
    FrameTooLargeError,
    ProtocolError,
    TruncatedFrameError,
)
from dialback.transport.address import Address, parse_address
from dialback.transport.items import (
    data_frame,
    decode_value,
    encode_error_item,
    encode_item,
    encode_value,
)
from dialback.transport.messages import (
    Annotated,
    CallHomeHandshake,
    ConnectionInfo,
    ControlMessage,
    DynamoError,
    PayloadCodec,
    RequestControlMessage,
    ResponseStreamPrologue,
    StreamType,
    decode_control,
    decode_handshake,
    decode_item,
    decode_prologue,
    decode_request_control,
    decode_tcp_info,
    encode_document,
    encode_request_control,
)
from dialback.transport.two_part import (
    PREFIX,
    FrameLimits,
    TwoPartDecoder,
    TwoPartMessage,
    decode,
    encode,
    salvage_header,
)
from support.strategies import (
    codecs,
    control_messages,
    hosts,
    messages,
    parts,
    ports,
    splits,
    texts,
    values,
)

LIMITS = FrameLimits(header=40, data=50)
ROOM = PREFIX.size + LIMITS.header + LIMITS.data


# --- frames -------------------------------------------------------------------------------


def _decoded(
    decoder: TwoPartDecoder, pieces: Sequence[bytes]
) -> tuple[list[TwoPartMessage], str | None]:
    """All messages, and the error that ended them; what is kept never exceeds one frame."""
    received: list[TwoPartMessage] = []
    try:
        for piece in pieces:
            decoder.receive_data(piece)
            while (message := decoder.next_message()) is not None:
                received.append(message)
            assert decoder.buffered < ROOM
    except ProtocolError as error:
        assert decoder.buffered == 0
        return received, repr(error)
    return received, None


@given(header=parts, data=parts, checksum=st.booleans())
def test_any_message_survives_encoding_and_decoding(
    header: bytes, data: bytes, checksum: bool
) -> None:
    frame = encode(header, data, checksum=checksum)
    assert decode(frame) == TwoPartMessage(header, data)
    decoder = TwoPartDecoder(verify_checksum=True)
    decoder.receive_data(frame)
    assert decoder.next_message() == TwoPartMessage(header, data)
    assert decoder.buffered == 0


@given(data=st.data(), sent=st.lists(messages, max_size=6))
def test_any_messages_arrive_in_order_at_any_split(
    data: st.DataObject, sent: list[TwoPartMessage]
) -> None:
    stream = b"".join(encode(message.header, message.data) for message in sent)
    decoder = TwoPartDecoder(FrameLimits(header=60, data=60))
    received: list[TwoPartMessage] = []
    for piece in data.draw(splits(stream)):
        decoder.receive_data(piece)
        while (message := decoder.next_message()) is not None:
            received.append(message)
    assert received == sent
    assert decoder.buffered == 0


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_after_an_error_nothing_more_is_kept(rest: list[bytes]) -> None:
    decoder = TwoPartDecoder(LIMITS)
    decoder.receive_data(b"\xff" * PREFIX.size)
    for piece in (b"", *rest):
        decoder.receive_data(piece)
        with pytest.raises(FrameTooLargeError):
            decoder.next_message()
        assert decoder.buffered == 0


sizes = st.integers(0, 60) | st.integers(0, 2**64 - 1)
streams = st.lists(
    st.binary(max_size=80) | st.builds(PREFIX.pack, sizes, sizes, sizes), max_size=6
).map(b"".join)


@given(data=st.data(), stream=streams)
def test_any_bytes_give_the_same_messages_and_error_at_any_split(
    data: st.DataObject, stream: bytes
) -> None:
    whole = _decoded(TwoPartDecoder(LIMITS), [stream[i : i + 1] for i in range(len(stream))])
    assert _decoded(TwoPartDecoder(LIMITS), data.draw(splits(stream))) == whole


@given(header=sizes, data=sizes, checksum=st.integers(0, 2**64 - 1))
@example(header=2**64 - 1, data=2**64 - 1, checksum=2**64 - 1)
def test_a_frame_over_the_limits_is_refused_from_its_prefix_alone(
    header: int, data: int, checksum: int
) -> None:
    decoder = TwoPartDecoder(LIMITS)
    decoder.receive_data(PREFIX.pack(header, data, checksum))
    if header <= LIMITS.header and data <= LIMITS.data:
        assert (decoder.next_message() is None) == (header + data > 0)
        return
    with pytest.raises(FrameTooLargeError):
        decoder.next_message()


@given(payload=st.binary(max_size=120) | streams)
def test_any_payload_is_a_message_or_a_protocol_error(payload: bytes) -> None:
    try:
        message = decode(payload)
    except (TruncatedFrameError, FrameTooLargeError):
        salvaged = salvage_header(payload)
        assert salvaged is None or salvaged in payload
        return
    size = PREFIX.size + len(message.header) + len(message.data)
    assert encode(message.header, message.data)[PREFIX.size :] == payload[PREFIX.size : size]


@given(header=st.binary(min_size=1, max_size=60), data=st.binary(min_size=1, max_size=60))
def test_a_header_is_saved_wherever_its_data_is_cut_off(header: bytes, data: bytes) -> None:
    frame = encode(header, data)
    for length in range(len(frame)):
        whole_header = length >= PREFIX.size + len(header)
        assert salvage_header(frame[:length]) == (header if whole_header else None)


# --- documents ----------------------------------------------------------------------------


@given(control_messages("10.0.0.7:4711"))
def test_a_control_message_survives_encoding_and_decoding(control: RequestControlMessage) -> None:
    encoded = encode_request_control(control)
    assert decode_request_control(encoded) == control
    assert encode_request_control(decode_request_control(encoded)) == encoded


@given(control_messages("10.0.0.7:4711"), st.dictionaries(texts, values, max_size=4))
def test_unknown_keys_of_a_control_message_are_skipped(
    control: RequestControlMessage, more: dict[str, Any]
) -> None:
    document = orjson.loads(encode_request_control(control))
    assert decode_request_control(orjson.dumps(more | document)).id == control.id


@given(texts, st.sampled_from(StreamType))
def test_a_handshake_survives_encoding_and_decoding(subject: str, stream_type: StreamType) -> None:
    handshake = CallHomeHandshake(subject, stream_type)
    assert decode_handshake(encode_document(handshake)) == handshake


dynamo_errors = st.builds(
    DynamoError,
    error_type=texts | st.dictionaries(texts, texts, min_size=1, max_size=1),
    error_class=st.none() | texts,
    reason=st.none() | texts,
    message=texts,
    diagnostic=st.none() | texts,
)


@given(st.none() | texts, dynamo_errors | st.just(msgspec.UNSET))
def test_a_prologue_survives_encoding_and_decoding(
    error: str | None, typed: DynamoError | msgspec.UnsetType
) -> None:
    prologue = ResponseStreamPrologue(error, typed)
    assert decode_prologue(encode_document(prologue)) == prologue


@given(st.sampled_from(ControlMessage))
def test_a_control_frame_survives_encoding_and_decoding(control: ControlMessage) -> None:
    assert decode_control(encode_document(control)) is control


READERS: list[tuple[Callable[[bytes], object], type[Exception]]] = [
    (decode_request_control, DeserializationError),
    (decode_handshake, ProtocolError),
    (decode_prologue, ProtocolError),
    (decode_control, ProtocolError),
    (lambda body: decode_item(body, PayloadCodec.JSON), DeserializationError),
    (lambda body: decode_item(body, PayloadCodec.MSGPACK), DeserializationError),
    (lambda body: decode_value(body, PayloadCodec.JSON), DeserializationError),
    (lambda body: decode_value(body, PayloadCodec.MSGPACK), DeserializationError),
]

documents = (
    st.binary(max_size=60)
    | values.map(orjson.dumps)
    | values.map(msgspec.msgpack.encode)
    | st.integers(1, 30_000).map(lambda depth: b"[" * depth)
    | st.integers(1, 30_000).map(lambda depth: b"\x91" * depth)
)


@pytest.mark.parametrize(("read", "error"), READERS)
@given(body=documents)
def test_any_bytes_are_read_or_refused_with_the_documented_error(
    read: Callable[[bytes], object], error: type[Exception], body: bytes
) -> None:
    with suppress(error):
        read(body)


@given(texts | values.map(lambda value: orjson.dumps(value).decode()))
def test_any_connection_info_is_read_or_refused(info: str) -> None:
    with suppress(ConnectionInfoError):
        decode_tcp_info(ConnectionInfo("tcp_server", info))


# --- items --------------------------------------------------------------------------------


@given(values, codecs)
def test_any_value_survives_either_codec(value: Any, codec: PayloadCodec) -> None:
    assert decode_value(encode_value(value, codec), codec) == value


@given(values, codecs)
def test_any_item_is_what_the_typed_wrapper_says(value: Any, codec: PayloadCodec) -> None:
    body = encode_item(value, codec)
    wrapper = decode_item(body, codec)
    assert wrapper.data == Annotated(data=value)
    assert not wrapper.complete_final
    assert b"".join(data_frame(body)) == encode(b"", body)


@given(dynamo_errors, codecs)
def test_any_error_item_survives_either_codec(error: DynamoError, codec: PayloadCodec) -> None:
    wrapper = decode_item(encode_error_item(error, codec), codec)
    assert wrapper.data == Annotated(event="error", error=error)
    assert not wrapper.complete_final


@given(values, st.binary(max_size=20))
def test_bytes_after_a_msgpack_value_are_ignored(value: Any, rest: bytes) -> None:
    body = encode_value(value, PayloadCodec.MSGPACK)
    assert decode_value(body + rest, PayloadCodec.MSGPACK) == value


# --- addresses ----------------------------------------------------------------------------


@given(hosts, ports)
def test_an_address_is_read_as_it_was_written(host: str, port: int) -> None:
    assert parse_address(str(Address(host, port))) == Address(host, port)
    assert parse_address(f"{host}:{port}") == Address(host, port)


@given(st.integers(255, 3000))
def test_a_host_longer_than_a_name_can_be_is_refused(length: int) -> None:
    with pytest.raises(ConnectionInfoError):
        parse_address(("é." * length)[:length] + ":80")


@given(st.text(max_size=40) | st.from_regex(r"\A\[?[0-9a-f:.]*\]?:[0-9]*\Z"))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with suppress(ConnectionInfoError):
        address = parse_address(text)
        assert address.host
        assert 0 < address.port < 65536
        assert parse_address(str(address)) == address
