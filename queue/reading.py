"""Stored messages read into values: what a request or a dead letter says about itself. No I/O.

Payloads are read leniently: a message that a worker would refuse still shows its id, its
caller and its codec, as far as they can be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from dialback.errors import DialbackError, ProtocolError
from dialback.queue.api import StoredMessage
from dialback.queue.dead_letter import (
    DELIVERIES,
    ORIGIN,
    ORIGIN_SUBJECT,
    OUTCOME,
    REASON,
    REQUEST_ID,
    TRUNCATED,
    WORKER,
    history_of,
)
from dialback.queue.inspection import Letter, QueuedMessage, lane_of, time_ns
from dialback.transport.messages import ConnectionInfo, PayloadCodec, decode_tcp_info
from dialback.transport.request_headers import DEADLINE_HEADERS, REQUEST_ID_HEADER
from dialback.transport.two_part import decode, salvage_header

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class PayloadFacts:
    """What a payload says about itself; empty where it cannot be read."""

    request_id: str = ""
    caller: str = ""
    codec: str = ""


class _Control(msgspec.Struct):
    """A control message of which anything may be wrong."""

    id: Any = None
    payload_codec: Any = None
    connection_info: Any = None


_control_decoder: Final = msgspec.json.Decoder(_Control)
# msgspec lets two errors through: text that is not UTF-8, and nesting without end.
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


def payload_facts(payload: bytes) -> PayloadFacts:
    """Return what can be read of a request's payload; never raises."""
    try:
        header: bytes | None = decode(payload).header
    except ProtocolError:
        header = salvage_header(payload)
    try:
        control = _control_decoder.decode(header or b"")
    except _UNREADABLE:
        return PayloadFacts()
    codec = PayloadCodec.JSON.value if control.payload_codec is None else control.payload_codec
    return PayloadFacts(_text(control.id), _caller_of(control.connection_info), _text(codec))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _caller_of(connection_info: object) -> str:
    try:
        return decode_tcp_info(msgspec.convert(connection_info, ConnectionInfo)).address
    except (msgspec.ValidationError, DialbackError):
        return ""


def queued_message(
    stored: StoredMessage, *, stream: str, now_ns: int, delivered_up_to: int | None
) -> QueuedMessage:
    """Return a stored request.

    Args:
        stored: The message.
        stream: Its stream.
        now_ns: The server's time, Unix nanoseconds.
        delivered_up_to: Last sequence that its lane has delivered; None without consumer.
    """
    facts = payload_facts(stored.payload)
    published_ns = time_ns(stored.time)
    named = facts.request_id or stored.headers.get(REQUEST_ID_HEADER)
    return QueuedMessage(
        stream=stream,
        sequence=stored.sequence,
        subject=stored.subject,
        lane=lane_of(stored.subject),
        request_id=named or f"seq-{stored.sequence}-{published_ns}",
        stored_at=stored.time,
        age=max(0, now_ns - published_ns) / _NS,
        delivered=None if delivered_up_to is None else stored.sequence <= delivered_up_to,
        deadline_left=_deadline_left(stored.headers, now_ns),
        caller=facts.caller,
        codec=facts.codec,
        headers=stored.headers,
        payload=stored.payload,
    )


def letter(stored: StoredMessage, *, stream: str, now_ns: int) -> Letter:
    """Return a stored dead letter; ``now_ns`` is the server's time, Unix nanoseconds."""
    headers = stored.headers
    facts = payload_facts(stored.payload)
    deliveries = headers.get(DELIVERIES, "")
    return Letter(
        stream=stream,
        sequence=stored.sequence,
        subject=stored.subject,
        request_id=headers.get(REQUEST_ID) or stored.subject.rpartition(".")[2],
        outcome=headers.get(OUTCOME, ""),
        reason=_reason(stored),
        worker=headers.get(WORKER, ""),
        deliveries=int(deliveries) if _is_number(deliveries) else 0,
        origin=headers.get(ORIGIN, ""),
        origin_subject=headers.get(ORIGIN_SUBJECT, ""),
        stored_at=stored.time,
        age=max(0, now_ns - time_ns(stored.time)) / _NS,
        history=tuple(history_of(headers)),
        caller=facts.caller,
        codec=facts.codec,
        headers=headers,
        payload=stored.payload,
    )


def _reason(stored: StoredMessage) -> str:
    """Return why a request was given up, and whether the letter has only a part of it."""
    reason, size = stored.headers.get(REASON, ""), stored.headers.get(TRUNCATED)
    if size is None:
        return reason
    return f"{reason} [payload cut to {len(stored.payload)} of {size} bytes]"


def _deadline_left(headers: Mapping[str, str], now_ns: int) -> float | None:
    values = [headers.get(name, "") for name in DEADLINE_HEADERS]
    limits = [int(text) for text in values if _is_number(text)]
    return (min(limits) - now_ns) / _NS if limits else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
