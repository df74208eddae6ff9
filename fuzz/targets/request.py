"""Any payload in the queue: the two-part message, its control message, its body.

Whatever the bytes: a request or a rejection, and an outcome. A control message that is accepted
is the same when it is written and read again, but for keys that nobody knows.
"""

import asyncio
import atexit
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry
from typing_extensions import override

from dialback.errors import (
    ConnectionInfoError,
    DeserializationError,
    DialError,
    ProtocolError,
)
from dialback.ingress.engine import Engine
from dialback.ingress.handler import Ingress
from dialback.ingress.request import ParsedRequest, Rejection, parse_unary
from dialback.metrics.worker_metrics import WorkerMetrics
from dialback.outcomes import Delivery, DeliveryEnd, Finished, Outcome
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.messages import (
    PayloadCodec,
    RequestControlMessage,
    ResumeOffer,
    decode_control,
    decode_handshake,
    decode_item,
    decode_prologue,
    decode_request_control,
    decode_tcp_info,
    encode_request_control,
)
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import encode, salvage_header

_ENDS: Final = {
    Outcome.INVALID,
    Outcome.UNSUPPORTED,
    Outcome.EXPIRED,
    Outcome.REQUESTER_GONE,
}
"""How a request can end when nobody can be dialled; any other end is a fault of dialback."""
_KEYS: Final = RequestControlMessage.__struct_fields__
_MAX_PORT: Final = 65535
_MAX_REASON: Final = 503


def check(data: bytes) -> None:
    """Fail with an ``AssertionError`` if a promise of the ingress does not hold."""
    _check_delivery(data)
    _check_control(data)
    _check_delivery(encode(data, b"1"))
    header = salvage_header(data)
    if header is not None:
        _check_control(header)
    _check_frames(data)


def _check_delivery(payload: bytes) -> None:
    delivery = Delivery(payload=payload, sequence=7, published_ns=99)
    parsed = parse_unary(delivery)
    if isinstance(parsed, ParsedRequest):
        assert 0 < parsed.call_home.address.port <= _MAX_PORT
    else:
        assert isinstance(parsed, Rejection)
        assert parsed.request_id
        assert parsed.reason
        assert len(parsed.reason) <= _MAX_REASON
    ending = _loop.run_until_complete(_ingress.handle(delivery))
    assert isinstance(ending, Finished)
    assert ending.outcome in _ENDS, ending.reason


def _check_control(header: bytes) -> None:
    try:
        control = decode_request_control(header)
    except DeserializationError:
        return
    again = encode_request_control(control)
    assert decode_request_control(again) == control
    assert _known(again) == _known(header)
    try:
        decode_tcp_info(control.connection_info)
    except ConnectionInfoError:
        return


def _known(header: bytes) -> dict[str, Any]:
    """The document's known keys, with what is left out when it is empty filled in.

    What is under other keys is skipped unread, broken UTF-8 included.
    """
    text = header.decode(errors="replace")
    raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    known = {key: msgspec.json.decode(raw[key]) for key in _KEYS if key in raw}
    info: dict[str, msgspec.Raw] = msgspec.json.decode(
        raw["connection_info"], type=dict[str, msgspec.Raw]
    )
    known["connection_info"] = [msgspec.json.decode(info[key]) for key in ("transport", "info")]
    empty: dict[str, Any] = {"metadata": {}, "frontend_send_ts_ns": None}
    return empty | known


def _check_frames(data: bytes) -> None:
    """Read the bytes as each document of the back-channel."""
    for read in (decode_control, decode_handshake, decode_prologue):
        try:
            document = read(data)
        except ProtocolError:
            continue
        assert read(msgspec.json.encode(document)) == document
    for codec in PayloadCodec:
        try:
            decode_item(data, codec)
        except DeserializationError:
            continue


class _Nobody(Dialer):
    """Every requester is gone."""

    @override
    async def dial(
        self,
        address: Address,
        subject: str,
        *,
        total_timeout: float | None = None,
        offer: ResumeOffer | None = None,
    ) -> ResponseSender:
        raise DialError("nobody listens", gone=True)


async def _echo(request: Any) -> AsyncIterator[Any]:
    yield request


def _build_ingress() -> Ingress:
    metrics = WorkerMetrics.create(
        CollectorRegistry(),
        namespace="fuzz",
        component="backend",
        endpoint="generate",
        worker_id="1",
        outcomes=Outcome,
        delivery_ends=DeliveryEnd,
        version="0",
        slots=1,
    )
    return Ingress(
        Engine(_echo),
        _Nobody(CallHomePolicy(), DialSettings(attempts=1)),
        metrics=metrics.work_handler,
        service=metrics.service,
    )


_loop = asyncio.new_event_loop()
atexit.register(_loop.close)
_ingress = _build_ingress()
