"""Every kind of bad request payload, with what has to become of it."""

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from dialback.metrics.names import ErrorType
from dialback.outcomes import Outcome
from dialback.transport.two_part import PREFIX, encode
from support.frames import control, request_payload, tcp_info

_INVALID, _UNSUPPORTED = Outcome.INVALID, Outcome.UNSUPPORTED
_MESSAGE, _DESERIALIZATION = ErrorType.INVALID_MESSAGE, ErrorType.DESERIALIZATION
_STREAM = ErrorType.RESPONSE_STREAM
_DEEP = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPayload:
    """A payload that cannot be served.

    Attributes:
        name: What is wrong with it.
        build: The payload, given the requester's address.
        outcome: How its request ends.
        error_type: Dynamo's label.
        told: Whether its requester can be told.
        reason: Part of the sentence that says why.
    """

    name: str
    build: Callable[[str], bytes]
    outcome: Outcome
    error_type: ErrorType
    told: bool
    reason: str


def _of(
    outcome: Outcome, error_type: ErrorType, *, told: bool
) -> Callable[[str, str, Callable[[str], bytes]], BadPayload]:
    def bad(name: str, reason: str, build: Callable[[str], bytes]) -> BadPayload:
        return BadPayload(
            name=name,
            build=build,
            outcome=outcome,
            error_type=error_type,
            told=told,
            reason=reason,
        )

    return bad


def _infos(**changes: object) -> Callable[[str], bytes]:
    def build(address: str) -> bytes:
        changed = tcp_info(address) | changes
        info = {key: value for key, value in changed.items() if value is not None}
        return request_payload(address, 1, info=info)

    return build


def _dials(other: str) -> Callable[[str], bytes]:
    return lambda _: request_payload(other, 1)


def _announcing(header: int, data: int, content: bytes = b"") -> bytes:
    return PREFIX.pack(header, data, 0) + content


def _too_much_data(address: str) -> bytes:
    header = control(address)
    return _announcing(len(header), 2**40, header)


_frame = _of(_INVALID, _MESSAGE, told=False)
_frame_told = _of(_INVALID, _MESSAGE, told=True)
_unread = _of(_INVALID, _DESERIALIZATION, told=False)
_unread_told = _of(_INVALID, _DESERIALIZATION, told=True)
_unknown_codec = _of(_UNSUPPORTED, _DESERIALIZATION, told=True)
_home = _of(_UNSUPPORTED, _STREAM, told=False)
_home_told = _of(_UNSUPPORTED, _STREAM, told=True)

BAD_PAYLOADS = (
    _frame("empty payload", "got 0 bytes, expected 24", lambda _: b""),
    _frame("three bytes", "got 3 bytes, expected 24", lambda _: b"abc"),
    _frame("23 bytes", "got 23 bytes, expected 24", lambda _: bytes(23)),
    _frame("text", "message too large", lambda _: b'{"id":"req-1","prompt":"hello world"}'),
    _frame("truncated header", "No message decoded", lambda a: request_payload(a, 1)[:40]),
    _frame_told("truncated data", "No message decoded", lambda a: request_payload(a, "abc")[:-1]),
    _frame("all ones", "message too large", lambda _: b"\xff" * 24),
    _frame("huge header", "message too large", lambda a: _announcing(2**63, 1, control(a))),
    _frame_told("huge data", "message too large", _too_much_data),
    _frame_told("header-only", "this is header-only", lambda a: encode(control(a))),
    _frame("data-only", "this is data-only", lambda _: encode(b"", b"{}")),
    _frame("empty frame", "this is empty", lambda _: bytes(24)),
    _unread("control not JSON", "control message", lambda _: encode(b"{id:req-1}", b"1")),
    _unread("control not UTF-8", "utf-8", lambda _: encode(b'{"id":"\xff"}', b"1")),
    _unread("control an array", "Expected `object`", lambda _: encode(b"[]", b"1")),
    _unread(
        "control too deep",
        "recursion",
        lambda _: encode(b'{"x":' + b"[" * _DEEP + b"]" * _DEEP + b"}", b"1"),
    ),
    _unread(
        "control without connection info",
        "connection_info",
        lambda a: encode(control(a, connection_info=None), b"1"),
    ),
    _unread_told("control without id", "`id`", lambda a: encode(control(a, id=None), b"1")),
    _unread_told("id a number", "Expected `str`", lambda a: encode(control(a, id=7), b"1")),
    _unread_told(
        "request type unknown",
        "Invalid enum value",
        lambda a: request_payload(a, 1, request_type="two_in"),
    ),
    _unknown_codec(
        "codec unknown", "Invalid enum value", lambda a: request_payload(a, 1, payload_codec="cbor")
    ),
    _unread_told(
        "codec a number", "payload_codec", lambda a: request_payload(a, 1, payload_codec=3)
    ),
    _unread_told("body not JSON", "is not json", lambda a: request_payload(a, body=b"{n:1}")),
    _unread_told("body not UTF-8", "is not json", lambda a: request_payload(a, body=b'"\xff"')),
    _unread_told(
        "body too deep",
        "is not json",
        lambda a: request_payload(a, body=b"[" * _DEEP + b"]" * _DEEP),
    ),
    _unread_told(
        "body not msgpack",
        "is not msgpack",
        lambda a: request_payload(a, body=b"\xc1", payload_codec="msgpack"),
    ),
    _unread_told(
        "msgpack body truncated",
        "is not msgpack",
        lambda a: request_payload(a, body=b"\x92\x01", payload_codec="msgpack"),
    ),
    _home_told(
        "transport unknown",
        "transport 'quic' is not supported",
        lambda a: request_payload(
            a, 1, connection_info={"transport": "quic", "info": orjson.dumps(tcp_info(a)).decode()}
        ),
    ),
    _home_told("context of another", "is not the request id", _infos(context="another")),
    _home_told("stream type of a request", "is not 'response'", _infos(stream_type="request")),
    _home_told("stream type unknown", "is not 'response'", _infos(stream_type="both")),
    _home("info not JSON", "connection info", lambda a: request_payload(a, 1, info="127.0.0.1:1")),
    _home("info without subject", "`subject`", _infos(subject=None)),
    _home("info without address", "`address`", _infos(address=None)),
    _home("address without port", "is not host:port", _dials("127.0.0.1")),
    _home("address empty", "is not host:port", _dials("")),
    _home("address with port 0", "has no port", _dials("127.0.0.1:0")),
    _home("address with a large port", "has no port", _dials("127.0.0.1:65536")),
    _home("address a URL", "is not host:port", _dials("http://127.0.0.1:80")),
    _home("address with an empty label", "is not host:port", _dials("a..b:80")),
    _home("address with a long label", "is not host:port", _dials("x" * 64 + ".example:80")),
    _home("metadata service", "outside the allowed networks", _dials("169.254.169.254:80")),
    _home(
        "metadata in IPv6", "outside the allowed networks", _dials("[::ffff:169.254.169.254]:80")
    ),
    _home("link-local", "outside the allowed networks", _dials("[fe80::1]:80")),
    _home("public address", "outside the allowed networks", _dials("192.0.2.1:80")),
    _home("any address", "outside the allowed networks", _dials("0.0.0.0:80")),
)
