from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest

from dialback.errors import ConnectionInfoError, DeserializationError, ProtocolError
from dialback.transport.items import encode_value
from dialback.transport.messages import (
    CallHomeHandshake,
    ConnectionInfo,
    ControlMessage,
    DynamoError,
    PayloadCodec,
    RequestControlMessage,
    RequestType,
    ResponseStreamPrologue,
    ResponseType,
    StreamType,
    TcpConnectionInfo,
    decode_control,
    decode_handshake,
    decode_item,
    decode_prologue,
    decode_request_control,
    decode_tcp_info,
    encode_document,
    encode_request_control,
    encode_tcp_info,
)
from dialback.transport.two_part import decode, encode
from support.captures import CAPTURES, Capture
from support.frames import control, tcp_info

ADDRESS = "10.0.0.5:40123"
SUBJECT = "6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6"
DEEP = b'{"more":' + b"[" * 5000

JSON_REQUEST = (
    "000000000000011a000000000000000700000000000000007b226964223a227265712d31222c22726571756573745f"
    "74797065223a2273696e676c655f696e222c22726573706f6e73655f74797065223a226d616e795f6f7574222c2270"
    "61796c6f61645f636f646563223a226a736f6e222c22636f6e6e656374696f6e5f696e666f223a7b227472616e7370"
    "6f7274223a227463705f736572766572222c22696e666f223a227b5c22616464726573735c223a5c2231302e302e30"
    "2e353a34303132335c222c5c227375626a6563745c223a5c2236663164316132652d336234632d346435652d386636"
    "302d3731383239336134623563365c222c5c22636f6e746578745c223a5c227265712d315c222c5c2273747265616d"
    "5f747970655c223a5c22726573706f6e73655c227d227d7d7b226e223a327d"
)
BARE_REQUEST = (
    "0000000000000103000000000000000700000000000000007b226964223a227265712d31222c22726571756573745f"
    "74797065223a2273696e676c655f696e222c22726573706f6e73655f74797065223a226d616e795f6f7574222c2263"
    "6f6e6e656374696f6e5f696e666f223a7b227472616e73706f7274223a227463705f736572766572222c22696e666f"
    "223a227b5c22616464726573735c223a5c2231302e302e302e353a34303132335c222c5c227375626a6563745c223a"
    "5c2236663164316132652d336234632d346435652d386636302d3731383239336134623563365c222c5c22636f6e74"
    "6578745c223a5c227265712d315c222c5c2273747265616d5f747970655c223a5c22726573706f6e73655c227d227d"
    "7d7b226e223a327d"
)
MSGPACK_REQUEST = (
    "000000000000013a000000000000000400000000000000007b226964223a227265712d31222c22726571756573745f"
    "74797065223a2273696e676c655f696e222c22726573706f6e73655f74797065223a226d616e795f6f7574222c2270"
    "61796c6f61645f636f646563223a226d73677061636b222c22636f6e6e656374696f6e5f696e666f223a7b22747261"
    "6e73706f7274223a227463705f736572766572222c22696e666f223a227b5c22616464726573735c223a5c2231302e"
    "302e302e353a34303132335c222c5c227375626a6563745c223a5c2236663164316132652d336234632d346435652d"
    "386636302d3731383239336134623563365c222c5c22636f6e746578745c223a5c227265712d315c222c5c22737472"
    "65616d5f747970655c223a5c22726573706f6e73655c227d227d2c226d65746164617461223a7b2261223a2231222c"
    "2262223a2232227d7d81a16e02"
)


def _request(
    *,
    request_id: str,
    address: str,
    subject: str,
    codec: PayloadCodec | None,
    value: object,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A request as our requester writes it."""
    info = TcpConnectionInfo(
        address=address, subject=subject, context=request_id, stream_type=StreamType.RESPONSE
    )
    header = encode_request_control(
        RequestControlMessage(
            id=request_id,
            request_type=RequestType.SINGLE_IN,
            response_type=ResponseType.MANY_OUT,
            payload_codec=codec or msgspec.UNSET,
            connection_info=encode_tcp_info(info),
            metadata=metadata or {},
        )
    )
    return encode(header, encode_value(value, codec or PayloadCodec.JSON))


# --- the request --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "metadata", "payload"),
    [
        (PayloadCodec.JSON, {}, JSON_REQUEST),
        (None, {}, BARE_REQUEST),
        (PayloadCodec.MSGPACK, {"b": "2", "a": "1"}, MSGPACK_REQUEST),
    ],
    ids=["json", "without codec", "msgpack"],
)
def test_a_request_is_the_protocols_example_with_metadata_sorted(
    codec: PayloadCodec | None, metadata: dict[str, str], payload: str
) -> None:
    written = _request(
        request_id="req-1",
        address=ADDRESS,
        subject=SUBJECT,
        codec=codec,
        value={"n": 2},
        metadata=metadata,
    )
    assert written.hex() == payload


CLIENT_VALUES: dict[str, dict[str, Any]] = {
    "normal": {"mode": "count", "n": 5},
    "empty": {"mode": "empty"},
    "codec_json": {"mode": "count", "n": 3},
    "codec_msgpack": {"mode": "count", "n": 3},
    "fixed_id_and_metadata": {"mode": "count", "n": 1},
    "raise_before": {"mode": "raise_before"},
    "raise_mid": {"mode": "raise_mid", "n": 5, "after": 2},
    "stop": {"mode": "slow", "n": 60, "delay": 0.05},
}


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_a_request_is_written_as_a_real_requester_writes_it(captured: Capture) -> None:
    control_message = decode_request_control(decode(captured.payload).header)
    info = decode_tcp_info(control_message.connection_info)
    named = captured.scenario == "fixed_id_and_metadata"
    written = _request(
        request_id=control_message.id,
        address=info.address,
        subject=info.subject,
        codec=captured.codec,
        value=CLIENT_VALUES[captured.scenario],
        metadata={"tenant": "t1", "prio": "7"} if named else None,
    )
    assert written == captured.payload


@pytest.mark.parametrize("captured", CAPTURES, ids=str)
def test_a_real_request_is_read(captured: Capture) -> None:
    message = decode_request_control(decode(captured.payload).header)
    info = decode_tcp_info(message.connection_info)
    assert message.request_type is RequestType.SINGLE_IN
    assert message.response_type is ResponseType.MANY_OUT
    assert message.connection_info.transport == "tcp_server"
    assert message.frontend_send_ts_ns is None
    assert info.context == message.id
    assert info.stream_type == "response"
    handshake = decode_handshake(captured.frames[0].header)
    assert handshake == CallHomeHandshake(info.subject, StreamType.RESPONSE)


def test_an_absent_codec_is_json() -> None:
    message = decode_request_control(control(ADDRESS, payload_codec=None))
    assert message.payload_codec is msgspec.UNSET
    assert message.codec is PayloadCodec.JSON
    assert decode_request_control(control(ADDRESS, payload_codec="msgpack")).codec is (
        PayloadCodec.MSGPACK
    )


def test_optional_keys_of_a_request_are_read_and_written() -> None:
    header = control(ADDRESS, metadata={"tenant": "t1"}, frontend_send_ts_ns=2**64 - 1)
    message = decode_request_control(header)
    assert message.metadata == {"tenant": "t1"}
    assert message.frontend_send_ts_ns == 2**64 - 1
    assert decode_request_control(encode_request_control(message)) == message


@pytest.mark.parametrize("value", ["many_in", "single_in"])
def test_both_request_types_are_read(value: str) -> None:
    assert decode_request_control(control(ADDRESS, request_type=value)).request_type == value


@pytest.mark.parametrize("key", ["id", "request_type", "response_type", "connection_info"])
def test_a_request_without_a_required_key_is_refused(key: str) -> None:
    with pytest.raises(DeserializationError, match=f"control message: .*`{key}`"):
        decode_request_control(control(ADDRESS, **{key: None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 1},
        {"request_type": "two_in"},
        {"response_type": "none_out"},
        {"payload_codec": "cbor"},
        {"connection_info": {"transport": "tcp_server"}},
        {"connection_info": {"info": "{}"}},
        {"connection_info": "tcp_server"},
        {"metadata": {"a": 1}},
        {"metadata": ["a"]},
        {"frontend_send_ts_ns": -1},
        {"frontend_send_ts_ns": "1"},
        {"frontend_send_ts_ns": 1.5},
    ],
    ids=str,
)
def test_a_request_with_a_wrong_value_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DeserializationError, match="control message: "):
        decode_request_control(control(ADDRESS, **changes))


@pytest.mark.parametrize("key", ["address", "subject", "context", "stream_type"])
def test_connection_info_without_a_required_key_is_refused(key: str) -> None:
    info = {name: value for name, value in tcp_info(ADDRESS).items() if name != key}
    text = orjson.dumps(info).decode()
    with pytest.raises(ConnectionInfoError, match=f"connection info: .*`{key}`"):
        decode_tcp_info(ConnectionInfo("tcp_server", text))


# --- all documents ------------------------------------------------------------------------

Decode = Callable[[bytes], object]


def _decode_info(text: bytes) -> object:
    return decode_tcp_info(ConnectionInfo("tcp_server", text.decode(errors="surrogateescape")))


def _decode_json_item(text: bytes) -> object:
    return decode_item(text, PayloadCodec.JSON)


def _decode_msgpack_item(text: bytes) -> object:
    return decode_item(text, PayloadCodec.MSGPACK)


DOCUMENTS: list[tuple[Decode, bytes]] = [
    (decode_request_control, control(ADDRESS)),
    (_decode_info, orjson.dumps(tcp_info(ADDRESS))),
    (decode_handshake, b'{"subject":"s","stream_type":"response"}'),
    (decode_prologue, b'{"error":null}'),
    (_decode_json_item, b'{"data":{"data":1},"complete_final":false}'),
]
NAMES = ["request", "connection info", "handshake", "prologue", "item"]


@pytest.mark.parametrize(("read", "text"), DOCUMENTS, ids=NAMES)
def test_unknown_keys_are_ignored(read: Decode, text: bytes) -> None:
    document = orjson.loads(text)
    assert read(orjson.dumps({"more": [1, {"a": None}], **document, "most": None})) == read(text)


def test_unknown_keys_are_ignored_inside_connection_info_annotated_and_errors() -> None:
    info = {"transport": "tcp_server", "info": "{}", "more": 1}
    assert decode_request_control(control(ADDRESS, connection_info=info)).connection_info == (
        ConnectionInfo("tcp_server", "{}")
    )
    item = decode_item(
        b'{"data":{"more":1,"event":"error","error":{"error_type":"Unknown","message":"m","more":1}},'
        b'"complete_final":false}',
        PayloadCodec.JSON,
    )
    assert item.data is not None
    assert item.data.error == DynamoError(error_type="Unknown", message="m")


@pytest.mark.parametrize(("read", "text"), DOCUMENTS, ids=NAMES)
def test_keys_are_read_in_any_order(read: Decode, text: bytes) -> None:
    document = orjson.loads(text)
    assert read(orjson.dumps(dict(reversed(document.items())))) == read(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b"{",
        b"{} {}",
        b'{"more":NaN}',
        b'{"more":Infinity}',
        b"{'more':1}",
        b'{"more":1,}',
        b"\xff",
        b'{"subject":"\xff","id":"\xff","address":"\xff","error":"\xff","data":{"id":"\xff"}}',
        DEEP,
    ],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.parametrize("read", [read for read, _ in DOCUMENTS], ids=NAMES)
def test_what_is_not_strict_json_is_refused_by_name(read: Decode, text: bytes) -> None:
    with pytest.raises((ProtocolError, ConnectionInfoError)):
        read(text)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"\x81\xaecomplete_final",
        b"\x82\xa4data\x81\xa2id\xa1\xff\xaecomplete_final\xc2",
        b"\x82\xa4data\x81\xa4data\x81\x80\x01\xaecomplete_final\xc2",
        b"\x82\xa4data\x81\xa4data" + b"\x91" * 5000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_msgpack_item_that_cannot_be_read_is_refused_by_name(body: bytes) -> None:
    with pytest.raises(DeserializationError, match="item: "):
        _decode_msgpack_item(body)


# --- the back-channel ---------------------------------------------------------------------


def test_a_handshake_is_the_protocols_example() -> None:
    document = CallHomeHandshake(subject=SUBJECT, stream_type=StreamType.RESPONSE)
    assert encode(encode_document(document)).hex() == (
        "000000000000004b000000000000000000000000000000007b227375626a656374223a2236663164316132652d33"
        "6234632d346435652d386636302d373138323933613462356336222c2273747265616d5f74797065223a22726573"
        "706f6e7365227d"
    )


@pytest.mark.parametrize(
    "text",
    [
        b'{"subject":"s"}',
        b'{"stream_type":"response"}',
        b'{"subject":"s","stream_type":"other"}',
        b'{"subject":1,"stream_type":"response"}',
        b'"sentinel"',
    ],
)
def test_a_handshake_needs_a_subject_and_a_stream_type(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a handshake"):
        decode_handshake(text)


BOOM = DynamoError(
    error_type="Unknown",
    error_class="Internal",
    reason="runtime.unclassified",
    message="boom",
    diagnostic="boom",
)
GOOD_PROLOGUE = "000000000000000e000000000000000000000000000000007b226572726f72223a6e756c6c7d"
OLD_REFUSAL = (
    "0000000000000020000000000000000000000000000000007b226572726f72223a2247656e6572617465204572"
    "726f723a20626f6f6d227d"
)
NEW_REFUSAL = (
    "000000000000009f000000000000000000000000000000007b226572726f72223a2247656e6572617465204572"
    "726f723a20626f6f6d222c2274797065645f6572726f72223a7b226572726f725f74797065223a22556e6b6e6f"
    "776e222c22636c617373223a22496e7465726e616c222c22726561736f6e223a2272756e74696d652e756e636c"
    "6173736966696564222c226d657373616765223a22626f6f6d222c22646961676e6f73746963223a22626f6f6d"
    "227d7d"
)
PROLOGUES = [
    (ResponseStreamPrologue(), GOOD_PROLOGUE),
    (ResponseStreamPrologue("Generate Error: boom"), OLD_REFUSAL),
    (ResponseStreamPrologue("Generate Error: boom", BOOM), NEW_REFUSAL),
]


@pytest.mark.parametrize(("prologue", "frame"), PROLOGUES, ids=["good", "1.3", "1.6"])
def test_a_prologue_is_the_protocols_example(prologue: ResponseStreamPrologue, frame: str) -> None:
    assert encode(encode_document(prologue)).hex() == frame
    assert decode_prologue(decode(bytes.fromhex(frame)).header) == prologue


@pytest.mark.parametrize("text", [b"{}", b'{"error":null}', b'{"error":null,"typed_error":null}'])
def test_a_prologue_without_error_is_success(text: bytes) -> None:
    assert decode_prologue(text).error is None


@pytest.mark.parametrize("text", [b'{"error":1}', b'{"error":"x","typed_error":{}}'])
def test_a_malformed_prologue_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed prologue"):
        decode_prologue(text)


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        (ControlMessage.STOP, "0000000000000006000000000000000000000000000000002273746f7022"),
        (ControlMessage.KILL, "000000000000000600000000000000000000000000000000226b696c6c22"),
        (
            ControlMessage.SENTINEL,
            "000000000000000a000000000000000000000000000000002273656e74696e656c22",
        ),
    ],
)
def test_a_control_frame_is_the_protocols_example(message: ControlMessage, frame: str) -> None:
    assert encode(encode_document(message)).hex() == frame
    assert decode_control(decode(bytes.fromhex(frame)).header) is message


@pytest.mark.parametrize("text", [b'"go"', b'"Stop"', b"stop", b"{}", b'"\xff"', DEEP])
def test_no_other_control_frame_exists(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a control frame"):
        decode_control(text)


@pytest.mark.parametrize("text", [b"{}", b'{"data":{"data":1}}', b'{"complete_final":null}'])
def test_an_item_without_complete_final_is_refused(text: bytes) -> None:
    with pytest.raises(DeserializationError, match="complete_final"):
        decode_item(text, PayloadCodec.JSON)


def test_an_item_may_have_a_null_or_no_data() -> None:
    for text in (b'{"data":null,"complete_final":true}', b'{"complete_final":true}'):
        assert decode_item(text, PayloadCodec.JSON).data is None


@pytest.mark.parametrize(
    ("error_type", "kind"),
    [
        ("InvalidArgument", "InvalidArgument"),
        ({"Backend": "InvalidArgument"}, "Backend InvalidArgument"),
    ],
)
def test_an_errors_type_in_words(error_type: str | dict[str, str], kind: str) -> None:
    assert DynamoError(error_type=error_type, message="m").kind == kind


def test_an_error_may_have_a_cause_of_the_same_shape() -> None:
    item = decode_item(
        b'{"data":{"event":"error","error":{"error_type":"Unknown","message":"a","public":{"x":1},'
        b'"caused_by":{"error_type":{"Backend":"Disconnected"},"message":"b"}}},'
        b'"complete_final":false}',
        PayloadCodec.JSON,
    )
    assert item.data is not None
    assert item.data.error is not None
    assert item.data.error.public == {"x": 1}
    assert item.data.error.caused_by == (
        DynamoError(error_type={"Backend": "Disconnected"}, message="b")
    )


def test_a_send_time_beyond_64_bits_is_refused() -> None:
    header = control("10.0.0.5:1", frontend_send_ts_ns=0).replace(
        b'"frontend_send_ts_ns":0', b'"frontend_send_ts_ns":' + b"9" * 400
    )
    with pytest.raises(DeserializationError):
        decode_request_control(header)
