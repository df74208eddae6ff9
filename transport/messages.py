"""What is written in the parts of a two-part message: the wire's JSON and msgpack documents.

Typed structs, bytes in and values out; no I/O. Keys are written in Dynamo's order and left
out where Dynamo leaves them out; unknown keys are ignored when read.

Source: protocol sections 3, 4, 6 and 10 (Dynamo's ``RequestControlMessage``,
``CallHomeHandshake``, ``ResponseStreamPrologue``, ``ControlMessage``,
``NetworkStreamWrapper``, ``Annotated``, ``DynamoError``).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated as Constrained
from typing import Any, Final

import msgspec

from dialback.errors import ConnectionInfoError, DeserializationError, ProtocolError

TCP_SERVER: Final = "tcp_server"
"""The one call-home transport that dialback speaks."""

_U64 = Constrained[int, msgspec.Meta(ge=0)]
_MAX_U64: Final = 2**64 - 1


class PayloadCodec(StrEnum):
    """Codec of request bodies and of data-only frames (protocol section 3.3)."""

    JSON = "json"
    MSGPACK = "msgpack"


class RequestType(StrEnum):
    """Shape of the input; the unary worker serves either (protocol section 4.1)."""

    SINGLE_IN = "single_in"
    MANY_IN = "many_in"


class ResponseType(StrEnum):
    """Shape of the output."""

    SINGLE_OUT = "single_out"
    MANY_OUT = "many_out"


class StreamType(StrEnum):
    """Which way a back-channel's items flow."""

    RESPONSE = "response"
    REQUEST = "request"


class ControlMessage(StrEnum):
    """A control frame on the back-channel (protocol section 6.6)."""

    STOP = "stop"
    KILL = "kill"
    SENTINEL = "sentinel"


class ConnectionInfo(msgspec.Struct, frozen=True):
    """Where to dial back.

    Attributes:
        transport: ``tcp_server``.
        info: A JSON document in a string, for ``tcp_server`` a :class:`TcpConnectionInfo`.
    """

    transport: str
    info: str


class TcpConnectionInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The ``info`` document of transport ``tcp_server``.

    Attributes:
        address: ``host:port`` where the requester listens.
        subject: The stream subject: names one response stream there.
        context: Equal to the control message's ``id``.
        stream_type: ``response`` for the stream of answers.
        resumable: 1 if the subject is kept for another worker (overview section 4); ours
            alone, left out when 0.
        reuse: 1 if a worker may keep the connection for the next stream; likewise.
    """

    address: str
    subject: str
    context: str
    stream_type: str
    resumable: int = 0
    reuse: int = 0


class RequestControlMessage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Header of a request (protocol section 4.1).

    Attributes:
        id: Request id.
        request_type: ``single_in`` for ordinary requests.
        response_type: ``many_out``.
        payload_codec: Codec of the body and of the answers; absent means JSON.
        connection_info: Where to dial back.
        metadata: String map for the engine.
        frontend_send_ts_ns: When the request was sent, Unix nanoseconds.
    """

    id: str
    request_type: RequestType
    response_type: ResponseType
    payload_codec: PayloadCodec | msgspec.UnsetType = msgspec.UNSET
    connection_info: ConnectionInfo
    metadata: dict[str, str] = {}
    frontend_send_ts_ns: _U64 | None = None

    @property
    def codec(self) -> PayloadCodec:
        """The codec to use, with the default filled in."""
        return PayloadCodec.JSON if self.payload_codec is msgspec.UNSET else self.payload_codec


class CallHomeHandshake(msgspec.Struct, frozen=True):
    """First frame of a back-channel, worker to requester.

    Attributes:
        subject: The stream subject of the connection info.
        stream_type: ``response``.
        resume: 1 if the worker understands a :class:`ResumeAnswer`. This key and the next ones
            are ours alone (overview section 4) and left out together.
        delivery: Which delivery of the request dials, 1 for the first.
        epoch: When the consumer was created, Unix nanoseconds.
        unable: 1 if its engine cannot go on where another worker was lost; else left out.
        fresh: 1 if it begins at the first item and waits for no answer; else left out.
        reuse: 1 if it keeps the connection when it is told that the stream has been received;
            else left out.
    """

    subject: str
    stream_type: StreamType
    resume: int | msgspec.UnsetType = msgspec.UNSET
    delivery: _U64 | msgspec.UnsetType = msgspec.UNSET
    epoch: _U64 | msgspec.UnsetType = msgspec.UNSET
    unable: int | msgspec.UnsetType = msgspec.UNSET
    fresh: int | msgspec.UnsetType = msgspec.UNSET
    reuse: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def offer(self) -> "ResumeOffer | None":
        """What the worker announced; ``None`` for one that knows nothing of it."""
        if self.resume != 1:
            return None
        return ResumeOffer(
            self.delivery or 0,
            self.epoch or 0,
            unable=self.unable == 1,
            fresh=self.fresh == 1,
            reuse=self.reuse == 1,
        )


class ResumeOffer(msgspec.Struct, frozen=True):
    """What a worker says of itself when it dials a resumable stream.

    Attributes:
        delivery: Which delivery of the request it serves, 1 for the first.
        epoch: When the consumer was created, Unix nanoseconds: with a new consumer the
            delivery numbers begin anew.
        unable: Whether it could only start over: its engine declares no way to resume.
        fresh: Whether it takes itself for the first: it begins at the first item and waits for
            no answer. One that comes all the same says that it is not.
        reuse: Whether it keeps the connection for its next stream to the same requester.
    """

    delivery: int
    epoch: int
    unable: bool = False
    fresh: bool = False
    reuse: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """What is compared: of two workers the one of the higher rank serves the stream."""
        return self.epoch, self.delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAnswer:
    """What the requester has of a resumable stream; written by ``resume_frames``.

    Attributes:
        resume: Items in the stream's buffer or beyond it, error items included.
        fruitless: Workers in a row that were lost without a new item.
        delivered: Those items, if the requester keeps them.
        digest: XXH3-64 over the bodies of their frames, in hex; empty if there are none.
        waited_ms: Milliseconds since the last of them, or since the request was registered.
    """

    resume: int
    fruitless: int
    delivered: list[Any] | None = None
    digest: str = ""
    waited_ms: int = 0


class DynamoError(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An error as Dynamo writes it (protocol sections 10.3 and 10.4).

    Attributes:
        error_type: Type name, or ``{"Backend": name}``; what release 1.3 reads.
        error_class: Release 1.6's class (key ``class``).
        reason: Release 1.6's dotted reason.
        message: What went wrong.
        diagnostic: Longer text for logs.
        public: What an end user may see.
        caused_by: Another such error.
    """

    error_type: str | dict[str, str]
    error_class: str | None = msgspec.field(default=None, name="class")
    reason: str | None = None
    message: str
    diagnostic: str | None = None
    public: dict[str, Any] | None = None
    caused_by: "DynamoError | None" = None

    @property
    def kind(self) -> str:
        """The type in words: ``InvalidArgument`` or ``Backend InvalidArgument``."""
        if isinstance(self.error_type, str):
            return self.error_type
        return " ".join(f"{name} {sub}" for name, sub in self.error_type.items())


class ResponseStreamPrologue(msgspec.Struct, frozen=True):
    """Second frame of a back-channel: the engine accepted, or why not.

    Attributes:
        error: ``None`` when accepted; always written.
        typed_error: Release 1.6's error; left out when there is none.
    """

    error: str | None = None
    typed_error: DynamoError | msgspec.UnsetType | None = msgspec.UNSET


class Annotated(msgspec.Struct, frozen=True, omit_defaults=True):
    """The envelope round one item (protocol section 10.1).

    Attributes:
        data: The engine's value.
        id: Optional id.
        event: ``error`` marks an error item.
        comment: Optional texts.
        error: The error of an error item.
    """

    data: Any = None
    id: str | None = None
    event: str | None = None
    comment: list[str] | None = None
    error: DynamoError | None = None


class ItemWrapper(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Body of a data-only frame on the response stream (protocol section 6.3).

    Attributes:
        data: An item; left out in the final.
        complete_final: True in the final frame; always written, required when read.
    """

    data: Annotated | None = None
    complete_final: bool


_request_decoder = msgspec.json.Decoder(RequestControlMessage)
_tcp_info_decoder = msgspec.json.Decoder(TcpConnectionInfo)
_handshake_decoder = msgspec.json.Decoder(CallHomeHandshake)
_prologue_decoder = msgspec.json.Decoder(ResponseStreamPrologue)
_control_decoder = msgspec.json.Decoder(ControlMessage)
_item_json_decoder = msgspec.json.Decoder(ItemWrapper)
_item_msgpack_decoder = msgspec.msgpack.Decoder(ItemWrapper)
_json_encoder = msgspec.json.Encoder()

# msgspec lets two errors through: text that is not UTF-8, and nesting without end.
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


def encode_document(document: msgspec.Struct | ControlMessage) -> bytes:
    """Return a header document (request, handshake, prologue, control frame) as JSON."""
    return _json_encoder.encode(document)


def encode_request_control(message: RequestControlMessage) -> bytes:
    """Return the header of a request; metadata keys are sorted, as Dynamo writes them."""
    ordered = dict(sorted(message.metadata.items()))
    return _json_encoder.encode(msgspec.structs.replace(message, metadata=ordered))


def encode_tcp_info(info: TcpConnectionInfo) -> ConnectionInfo:
    """Return connection info of transport ``tcp_server``."""
    return ConnectionInfo(transport=TCP_SERVER, info=_json_encoder.encode(info).decode())


def decode_request_control(header: bytes) -> RequestControlMessage:
    """Return the control message of a request.

    Raises:
        DeserializationError: If it is not JSON, lacks a key or has an unknown value.
    """
    try:
        message = _request_decoder.decode(header)
    except _UNREADABLE as error:
        raise DeserializationError(f"control message: {error}") from error
    if (message.frontend_send_ts_ns or 0) > _MAX_U64:  # msgspec compares with an int64 at most
        raise DeserializationError("control message: frontend_send_ts_ns is no 64-bit number")
    return message


def decode_tcp_info(connection_info: ConnectionInfo) -> TcpConnectionInfo:
    """Return the ``info`` document of ``tcp_server`` connection info.

    Raises:
        ConnectionInfoError: If it is not JSON or lacks a key. The transport is not checked.
    """
    try:
        return _tcp_info_decoder.decode(connection_info.info)
    except _UNREADABLE as error:
        raise ConnectionInfoError(f"connection info: {error}") from error


def decode_handshake(header: bytes) -> CallHomeHandshake:
    """Return a handshake.

    Raises:
        ProtocolError: If the header is not one.
    """
    try:
        return _handshake_decoder.decode(header)
    except _UNREADABLE as error:
        raise ProtocolError(f"not a handshake: {error}") from error


def decode_prologue(header: bytes) -> ResponseStreamPrologue:
    """Return a prologue; a missing ``error`` key reads as success.

    Raises:
        ProtocolError: If the header is not one.
    """
    try:
        return _prologue_decoder.decode(header)
    except _UNREADABLE as error:
        raise ProtocolError(f"malformed prologue: {error}") from error


def decode_control(header: bytes) -> ControlMessage:
    """Return the control frame in a header.

    Raises:
        ProtocolError: If it is none.
    """
    try:
        return _control_decoder.decode(header)
    except _UNREADABLE as error:
        raise ProtocolError(f"not a control frame: {error}") from error


def decode_item(body: bytes, codec: PayloadCodec) -> ItemWrapper:
    """Return the wrapper in the body of a data-only frame.

    Raises:
        DeserializationError: If it cannot be read or lacks ``complete_final``.
    """
    try:
        if codec is PayloadCodec.JSON:
            return _item_json_decoder.decode(body)
        return _item_msgpack_decoder.decode(body)
    except _UNREADABLE as error:
        raise DeserializationError(f"item: {error}") from error
