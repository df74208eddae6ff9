"""Payload to request or rejection, without I/O. What a rejection does is in test_bad_input.py."""

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson
import pytest

from dialback.ingress.request import (
    ParsedRequest,
    Rejection,
    parse_unary,
)
from dialback.outcomes import Delivery
from dialback.transport.address import Address
from dialback.transport.messages import PayloadCodec
from dialback.transport.request_headers import (
    DEADLINE_HEADER,
    SEND_TIME_HEADER,
    START_BY_HEADER,
)
from dialback.transport.two_part import encode
from support.frames import control, request_payload, tcp_info

ADDRESS = "10.0.0.7:4711"


def parsed(payload: bytes, headers: Mapping[str, str] | None = None) -> ParsedRequest:
    result = parse_unary(Delivery(payload=payload, headers=headers or {}))
    assert isinstance(result, ParsedRequest), result
    return result


def rejection(payload: bytes, headers: Mapping[str, str] | None = None) -> Rejection:
    delivery = Delivery(payload=payload, headers=headers or {}, sequence=7, published_ns=99)
    result = parse_unary(delivery)
    assert isinstance(result, Rejection), result
    return result


def test_json_request_is_read() -> None:
    request = parsed(request_payload(ADDRESS, {"n": 3}, metadata={"tenant": "a"}))
    assert (request.request_id, request.value) == ("req-1", {"n": 3})
    assert request.metadata == {"tenant": "a"}
    assert request.call_home.address == Address("10.0.0.7", 4711)
    assert request.call_home.subject == "6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6"
    assert request.call_home.codec is PayloadCodec.JSON


def test_msgpack_request_is_read() -> None:
    body = msgspec.msgpack.encode({"n": 3})
    request = parsed(request_payload(ADDRESS, body=body, payload_codec="msgpack"))
    assert (request.value, request.call_home.codec) == ({"n": 3}, PayloadCodec.MSGPACK)


def test_codec_is_json_when_none_is_named() -> None:
    request = parsed(request_payload(ADDRESS, 1, payload_codec=None))
    assert request.call_home.codec is PayloadCodec.JSON


def test_keys_that_are_not_known_are_ignored() -> None:
    info = tcp_info(ADDRESS, future={"a": [1]})
    assert parsed(request_payload(ADDRESS, 1, info=info, future=True)).value == 1


def test_bytes_behind_the_message_are_ignored() -> None:
    assert parsed(request_payload(ADDRESS, 1) + b"rest").value == 1


@pytest.mark.parametrize("request_type", ["single_in", "many_in"])
def test_request_type_does_not_matter(request_type: str) -> None:
    assert parsed(request_payload(ADDRESS, 1, request_type=request_type)).value == 1


# --- times ------------------------------------------------------------------------------------


def test_send_time_of_the_control_message_wins_over_the_header() -> None:
    headers = {SEND_TIME_HEADER: "5"}
    assert parsed(request_payload(ADDRESS, 1), headers).sent_ns == 5
    assert parsed(request_payload(ADDRESS, 1, frontend_send_ts_ns=4), headers).sent_ns == 4


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1e9", None),
        ("1.5", None),
        ("²", None),  # a digit, but no number
        ("0", 0),
        ("1700000000000000000", 1_700_000_000_000_000_000),
        ("9" * 19, 10**19 - 1),
        ("9" * 20, None),
        ("9" * 5000, None),
    ],
)
def test_times_in_headers_are_unix_nanoseconds_or_nothing(text: str, read: int | None) -> None:
    headers = {DEADLINE_HEADER: text, START_BY_HEADER: text, SEND_TIME_HEADER: text}
    request = parsed(request_payload(ADDRESS, 1), headers)
    assert (request.deadline_ns, request.start_by_ns, request.sent_ns) == (read, read, read)


@pytest.mark.parametrize(
    ("headers", "expired_at"),
    [
        ({DEADLINE_HEADER: "100"}, 100),
        ({START_BY_HEADER: "100"}, 100),
        ({DEADLINE_HEADER: "100", START_BY_HEADER: "200"}, 100),
        ({DEADLINE_HEADER: "200", START_BY_HEADER: "100"}, 100),
    ],
)
def test_earlier_of_the_two_limits_counts_while_a_request_is_queued(
    headers: dict[str, str], expired_at: int
) -> None:
    request = parsed(request_payload(ADDRESS, 1), headers)
    assert not request.expired(expired_at - 1)
    assert request.expired(expired_at)


def test_request_without_a_limit_never_expires() -> None:
    assert not parsed(request_payload(ADDRESS, 1)).expired(2**63)


# --- what is kept of a message that cannot be served ----------------------------------------------


def test_unreadable_message_is_named_by_its_header_or_its_sequence() -> None:
    assert rejection(b"", {"request-id": "from-header"}).request_id == "from-header"
    assert rejection(b"").request_id == "seq-7-99"


@pytest.mark.parametrize(
    ("request_id", "named"), [("abc", "abc"), ("", "seq-7-99"), (3, "seq-7-99")]
)
def test_broken_control_message_is_named_by_its_id_if_that_is_one(
    request_id: Any, named: str
) -> None:
    header = control(ADDRESS, id=request_id, request_type="unheard-of")
    assert rejection(encode(header, b"1")).request_id == named


@pytest.mark.parametrize(
    ("codec", "answer"),
    [("msgpack", PayloadCodec.MSGPACK), ("json", PayloadCodec.JSON), ("cbor", PayloadCodec.JSON)],
)
def test_rejection_is_answered_in_the_codec_of_the_request(
    codec: str, answer: PayloadCodec
) -> None:
    found = rejection(request_payload(ADDRESS, body=b"\xc1", payload_codec=codec))
    assert found.call_home is not None
    assert found.call_home.codec is answer


@pytest.mark.parametrize(
    "connection_info",
    [
        "text",
        {"transport": "tcp_server"},
        {"transport": "tcp_server", "info": 3},
        {"transport": "tcp_server", "info": "{"},
        {"transport": "tcp_server", "info": orjson.dumps(tcp_info("nowhere")).decode()},
        {"transport": "tcp_server", "info": orjson.dumps(tcp_info("a:1", subject=None)).decode()},
        {"transport": "tcp_server", "info": "[" * 50_000 + "]" * 50_000},
    ],
)
def test_connection_info_that_cannot_be_read_cannot_be_answered(connection_info: object) -> None:
    header = control(ADDRESS, connection_info=connection_info)
    assert rejection(encode(header, b"1")).call_home is None
