"""A delivery's payload turned into a request, or into a rejection that can be answered.

Pure: bytes and headers in, a value out. The order of the checks is the seed's (protocol
section 4.5). Whatever can be read of the connection info is kept with a rejection, so that
its caller hears of it (protocol D-1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from dialback.errors import (
    ConnectionInfoError,
    DeserializationError,
    InvalidMessageError,
    ProtocolError,
)
from dialback.metrics.names import ErrorType
from dialback.outcomes import Delivery, Outcome
from dialback.transport.address import Address, parse_address
from dialback.transport.items import decode_value
from dialback.transport.messages import (
    TCP_SERVER,
    ConnectionInfo,
    PayloadCodec,
    RequestControlMessage,
    StreamType,
    decode_request_control,
    decode_tcp_info,
)
from dialback.transport.request_headers import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    SEND_TIME_HEADER,
    START_BY_HEADER,
)
from dialback.transport.two_part import decode, salvage_header

_MAX_DIGITS: Final = 19  # of Unix nanoseconds: until the year 2286
_MAX_REASON: Final = 500


class CallHome(msgspec.Struct, frozen=True):
    """Where and how to answer.

    Attributes:
        address: Where the requester listens.
        subject: The stream subject.
        codec: Codec of the answers.
        resumable: Whether the requester keeps the subject for another worker (overview
            section 4).
        reuse: Whether it takes another stream on the connection when this one is over.
    """

    address: Address
    subject: str
    codec: PayloadCodec
    resumable: bool = False
    reuse: bool = False


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be served.

    Attributes:
        request_id: The control message's id.
        value: The request body's value.
        metadata: The control message's string map.
        call_home: Where to answer.
        sent_ns: When the requester sent it, Unix nanoseconds, or None.
        start_by_ns: When the caller gives up waiting for a first item, or None.
        deadline_ns: When the caller gives up on the whole stream, or None.
    """

    request_id: str
    value: Any
    metadata: Mapping[str, str]
    call_home: CallHome
    sent_ns: int | None = None
    start_by_ns: int | None = None
    deadline_ns: int | None = None

    def expired(self, now_ns: int) -> bool:
        """Whether the caller has given up waiting for a first item."""
        overdue = self.start_by_ns is not None and now_ns >= self.start_by_ns
        return overdue or (self.deadline_ns is not None and now_ns >= self.deadline_ns)

    def past_deadline(self, now_ns: int) -> bool:
        """Whether the caller has given up on the whole stream."""
        return self.deadline_ns is not None and now_ns >= self.deadline_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A message that cannot be served.

    Attributes:
        outcome: ``invalid`` or ``unsupported``.
        error_type: Dynamo's label.
        reason: One sentence for the caller, the log and the dead letter.
        request_id: The id, or what stands for it.
        call_home: Where to say so, if that can be read.
    """

    outcome: Outcome
    error_type: ErrorType
    reason: str
    request_id: str
    call_home: CallHome | None = None


Parse: TypeAlias = Callable[[Delivery], ParsedRequest | Rejection]
"""The dispatch seam: how a payload becomes a request (unary now)."""


class _LenientControl(msgspec.Struct):
    """The parts of a broken control message that help to answer it."""

    id: Any = None
    payload_codec: Any = None
    connection_info: Any = None


_lenient_decoder = msgspec.json.Decoder(_LenientControl)


def parse_unary(delivery: Delivery) -> ParsedRequest | Rejection:
    """Read a request with one input: a header-and-data two-part message."""
    try:
        message = decode(delivery.payload)
    except ProtocolError as error:
        return _reject(delivery, error, salvage_header(delivery.payload))
    if not (message.header and message.data):
        wrong = InvalidMessageError(f"a request has a header and a body, this is {message.kind}")
        return _reject(delivery, wrong, message.header or None)
    try:
        control = decode_request_control(message.header)
        codec = control.codec
        value = decode_value(message.data, codec)
        call_home = _call_home_of(control, codec)
    except (ProtocolError, ConnectionInfoError) as error:
        return _reject(delivery, error, message.header)
    return ParsedRequest(
        request_id=control.id,
        value=value,
        metadata=control.metadata,
        call_home=call_home,
        sent_ns=control.frontend_send_ts_ns or _number(delivery.headers, SEND_TIME_HEADER),
        start_by_ns=_number(delivery.headers, START_BY_HEADER),
        deadline_ns=_number(delivery.headers, DEADLINE_HEADER),
    )


def request_id_for(delivery: Delivery) -> str:
    """Return what stands for the id of a message whose control message cannot be read."""
    named = delivery.headers.get(REQUEST_ID_HEADER)
    return named or f"seq-{delivery.sequence}-{delivery.published_ns}"


def brief(error: Exception) -> str:
    """Return what an error says, cut: it may quote a whole payload."""
    text = str(error)
    return text if len(text) <= _MAX_REASON else text[:_MAX_REASON] + "..."


def _call_home_of(control: RequestControlMessage, codec: PayloadCodec) -> CallHome:
    """Check the connection info in the seed's order.

    Raises:
        ConnectionInfoError: If transport, info, stream type, context or address are wrong.
    """
    transport = control.connection_info.transport
    if transport != TCP_SERVER:
        raise ConnectionInfoError(f"transport {transport!r} is not supported, only {TCP_SERVER}")
    info = decode_tcp_info(control.connection_info)
    if info.stream_type != StreamType.RESPONSE:
        raise ConnectionInfoError(f"stream_type {info.stream_type!r} is not 'response'")
    if info.context != control.id:
        raise ConnectionInfoError(f"context {info.context!r} is not the request id {control.id!r}")
    return CallHome(
        parse_address(info.address),
        info.subject,
        codec,
        resumable=info.resumable == 1,
        reuse=info.reuse == 1,
    )


def _reject(
    delivery: Delivery, error: ProtocolError | ConnectionInfoError, header: bytes | None
) -> Rejection:
    control = _lenient(header)
    unknown_codec = isinstance(error, DeserializationError) and _codec_unknown(control)
    unsupported = isinstance(error, ConnectionInfoError) or unknown_codec
    named = control.id if isinstance(control.id, str) and control.id else None
    return Rejection(
        outcome=Outcome.UNSUPPORTED if unsupported else Outcome.INVALID,
        error_type=error.error_type or ErrorType.INVALID_MESSAGE,
        reason=brief(error),
        request_id=named or request_id_for(delivery),
        call_home=_salvage_call_home(control),
    )


def _lenient(header: bytes | None) -> _LenientControl:
    try:
        return _lenient_decoder.decode(header or b"{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # msgspec lets the last two out
        return _LenientControl()


def _codec_unknown(control: _LenientControl) -> bool:
    named = control.payload_codec
    return isinstance(named, str) and named not in set(PayloadCodec)


def _salvage_call_home(control: _LenientControl) -> CallHome | None:
    """Return where to answer, from whatever of the connection info can be read."""
    msgpack = control.payload_codec == PayloadCodec.MSGPACK
    try:
        named = msgspec.convert(control.connection_info, ConnectionInfo)
        info = decode_tcp_info(named)
        address = parse_address(info.address)
    except (msgspec.ValidationError, ConnectionInfoError):
        return None
    return CallHome(address, info.subject, PayloadCodec.MSGPACK if msgpack else PayloadCodec.JSON)


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    if len(text) > _MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    return int(text)
