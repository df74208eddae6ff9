import asyncio

import msgspec
import pytest

from dialback import errors
from dialback.transport.dynamo_errors import (
    ENGINE_ERRORS,
    backend_error,
    describe,
    dynamo_error,
    error_item_of,
    read_error,
    read_refusal,
    refusal_of,
)
from dialback.transport.items import encode_error_item
from dialback.transport.messages import (
    DynamoError,
    PayloadCodec,
    ResponseStreamPrologue,
    decode_item,
    decode_prologue,
    encode_document,
)
from dialback.transport.two_part import encode
from support.captures import CAPTURES, RELEASES, capture

BACKEND_TYPES = (
    ("Unknown", "Internal", "backend.unknown"),
    ("InvalidArgument", "InvalidRequest", "backend.invalid_argument"),
    ("CannotConnect", "Unavailable", "backend.cannot_connect"),
    ("Disconnected", "Unavailable", "backend.disconnected"),
    ("ConnectionTimeout", "DeadlineExceeded", "backend.connection_timeout"),
    ("ResponseTimeout", "DeadlineExceeded", "backend.response_timeout"),
    ("Cancelled", "Cancelled", "backend.cancelled"),
    ("EngineShutdown", "Unavailable", "backend.engine_shutdown"),
    ("StreamIncomplete", "Unavailable", "backend.stream_incomplete"),
)


@pytest.mark.parametrize(("name", "error_class", "reason"), BACKEND_TYPES)
def test_a_backend_error_is_written_for_readers_of_both_releases(
    name: str, error_class: str, reason: str
) -> None:
    assert msgspec.to_builtins(backend_error(ENGINE_ERRORS[name], "bad")) == {
        "error_type": {"Backend": name},
        "class": error_class,
        "reason": reason,
        "message": "bad",
        "diagnostic": "bad",
    }


@pytest.mark.parametrize(
    ("exception", "name", "message"),
    [
        (ValueError("x"), "InvalidArgument", "ValueError: x"),
        (TypeError("x"), "InvalidArgument", "TypeError: x"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            "InvalidArgument",
            "UnicodeDecodeError",
        ),
        (ConnectionError("x"), "Disconnected", "ConnectionError: x"),
        (ConnectionResetError("x"), "Disconnected", "ConnectionResetError: x"),
        (TimeoutError("x"), "ConnectionTimeout", "TimeoutError: x"),
        (asyncio.CancelledError(), "Cancelled", "CancelledError: "),
        (GeneratorExit(), "EngineShutdown", "engine shutting down"),
        (RuntimeError("x"), "Unknown", "RuntimeError: x"),
        (KeyError("x"), "Unknown", "KeyError: 'x'"),
        (OSError("x"), "Unknown", "OSError: x"),
        (AssertionError(), "Unknown", "AssertionError: "),
    ],
)
def test_a_python_exception_becomes_the_error_that_dynamo_makes_of_it(
    exception: BaseException, name: str, message: str
) -> None:
    error = error_item_of(exception)
    assert error.error_type == {"Backend": name}
    assert error.message.startswith(message)
    assert error.diagnostic == error.message


@pytest.mark.parametrize(
    ("scenario", "exception"),
    [
        ("raise_before", ValueError("lab: raised before first yield")),
        ("raise_mid", RuntimeError("lab: raised mid-stream")),
    ],
)
def test_an_error_item_is_what_a_real_worker_writes(scenario: str, exception: Exception) -> None:
    error = error_item_of(exception)
    captured = capture("1.6.1", scenario)
    assert encode_error_item(error, captured.codec) == captured.bodies[-2]
    old = decode_item(capture("1.3.1", scenario).bodies[-2], PayloadCodec.JSON)
    assert old.data is not None
    assert old.data.error is not None
    assert (old.data.error.error_type, old.data.error.message) == (error.error_type, error.message)


def test_both_releases_and_all_scenarios_are_among_the_captures() -> None:
    assert {captured.release for captured in CAPTURES} == set(RELEASES)
    assert len(CAPTURES) == 16


def test_an_error_item_is_the_example_of_release_1_6() -> None:
    body = encode_error_item(backend_error(errors.InvalidArgument, "bad"), PayloadCodec.JSON)
    assert encode(b"", body) == bytes.fromhex(
        "000000000000000000000000000000c600000000000000007b2264617461223a7b226576656e74223a22657272"
        "6f72222c226572726f72223a7b226572726f725f74797065223a7b224261636b656e64223a22496e76616c6964"
        "417267756d656e74227d2c22636c617373223a22496e76616c696452657175657374222c22726561736f6e223a"
        "226261636b656e642e696e76616c69645f617267756d656e74222c226d657373616765223a22626164222c2264"
        "6961676e6f73746963223a22626164227d7d2c22636f6d706c6574655f66696e616c223a66616c73657d"
    )


def test_a_refusal_has_dynamos_text_and_typed_error() -> None:
    assert encode_document(refusal_of(ValueError("sync boom"))) == (
        b'{"error":"Generate Error: ValueError: sync boom","typed_error":{"error_type":"Unknown",'
        b'"class":"Internal","reason":"runtime.unclassified","message":"ValueError: sync boom",'
        b'"diagnostic":"ValueError: sync boom"}}'
    )


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_diagnostic_is_cut_at_4096_bytes_and_the_message_is_not(letter: str) -> None:
    text = letter * 5000
    error = backend_error(errors.Unknown, text)
    assert error.message == text
    assert error.diagnostic is not None
    assert error.diagnostic.endswith(letter + "...[truncated]")
    assert 4095 <= len(error.diagnostic.encode()) <= 4096


def test_half_a_surrogate_pair_does_not_spoil_the_error_item() -> None:
    error = error_item_of(FileNotFoundError("no file 'caf\udce9'"))
    assert error.message == r"FileNotFoundError: no file 'caf\udce9'"
    for codec in PayloadCodec:
        item = decode_item(encode_error_item(error, codec), codec)
        assert item.data is not None
        assert item.data.error == error


def test_an_exception_is_described_with_its_class() -> None:
    assert describe(ValueError("what it says")) == "ValueError: what it says"


# --- the exceptions an engine may raise -----------------------------------------------------


@pytest.mark.parametrize("name", sorted(ENGINE_ERRORS))
def test_what_an_engine_raises_is_what_its_caller_catches(name: str) -> None:
    kind = ENGINE_ERRORS[name]
    written = decode_item(
        encode_error_item(error_item_of(kind("no room")), PayloadCodec.MSGPACK),
        PayloadCodec.MSGPACK,
    )
    assert written.data is not None
    assert written.data.error is not None
    read = read_error(written.data.error)
    assert type(read) is kind
    assert (read.message, read.error_class, read.reason) == (
        "no room",
        kind.default_class,
        kind.default_reason,
    )
    assert str(read) == f"{read.kind}: no room"


def test_an_engines_message_has_no_class_name_and_an_invalid_argument_is_for_end_users() -> None:
    assert msgspec.to_builtins(dynamo_error(errors.InvalidArgument("x"))) == {
        "error_type": {"Backend": "InvalidArgument"},
        "class": "InvalidRequest",
        "reason": "backend.invalid_argument",
        "message": "x",
        "diagnostic": "x",
        "public": {"type": "message", "message": "x"},
    }
    full = msgspec.to_builtins(dynamo_error(errors.ResourceExhausted("x")))
    assert full["error_type"] == "ResourceExhausted", "release 1.3 has no such Backend sub-type"
    assert "public" not in full


def test_a_refusal_carries_the_engines_type() -> None:
    prologue = refusal_of(errors.Unavailable("loading"))
    assert prologue.error == "Generate Error: Unavailable: loading"
    refused = read_refusal(decode_prologue(encode_document(prologue)))
    assert isinstance(refused.__cause__, errors.Unavailable)
    assert refused.__cause__.message == "loading"


def test_a_refusal_of_release_1_3_has_no_cause() -> None:
    refused = read_refusal(ResponseStreamPrologue(error="Generate Error: boom"))
    assert (str(refused), refused.__cause__) == ("Generate Error: boom", None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            DynamoError(error_type={"Backend": "Disconnected"}, message="m"),
            (errors.Disconnected, "Unavailable", "backend.disconnected"),
        ),
        (
            DynamoError(error_type="Disconnected", message="m"),
            (errors.Disconnected, "Unavailable", "backend.disconnected"),
        ),
        (
            DynamoError(
                error_type={"Backend": "Unknown"},
                error_class="Unavailable",
                reason="transport.disconnected",
                message="m",
            ),
            (errors.Unknown, "Unavailable", "transport.disconnected"),
        ),
        (
            DynamoError(
                error_type="InvalidArgument",
                error_class="Internal",
                reason="backend.invalid_argument",
                message="m",
            ),
            (errors.InvalidArgument, "Internal", "runtime.invalid_error"),
        ),
        (
            DynamoError(error_type={"Backend": "Novel"}, error_class="C", reason="r", message="m"),
            (errors.ResponseError, "C", "r"),
        ),
    ],
)
def test_an_error_is_read_as_dynamo_reads_it(
    error: DynamoError, expected: tuple[type[errors.ResponseError], str, str]
) -> None:
    read = read_error(error)
    assert (type(read), read.error_class, read.reason) == expected
    assert (read.kind, read.message) == (error.kind, "m")
