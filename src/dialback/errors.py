"""The whole error tree.

::

    DialbackError                     retryable, error_type
      ConfigError (ValueError)        settings, names, engines that cannot be loaded
      ProtocolError                   the same bytes fail again
        FrameTooLargeError            size, limit
        TruncatedFrameError           received, expected
        ChecksumError                 announced, computed
        InvalidMessageError           the wrong kind of two-part message
        DeserializationError          a part that cannot be read
      ResponseStreamError             no back-channel
        ConnectionInfoError           the message names no usable address
        CallHomeForbiddenError        the address is outside the allow-list
        DialError                     gone (refused) or unreachable
      PublishError                    an answer could not be written: client_gone or not
      QueueError                      the JetStream side
        ServerUnavailableError        no nats-server, or it does not answer
        StreamMissingError            nobody has created the endpoint's stream
        QueueFullError                the stream refuses more messages
        PayloadTooLargeError          size, limit
        ConfigMismatchError           a stream or consumer differs from what is needed
        DuplicateRequestError         the request id was used a moment ago
        PermissionDeniedError         NATS refuses this user
        NotFoundError                 no such message or dead letter
      RequestError                    what a caller's stream raises
        RequestTimeoutError           no first item in time (TimeoutError)
        DeadlineExceededError         the stream took longer than its deadline (TimeoutError)
        EngineRefusedError            error prologue
        ResponseError                 an error item
          EngineError                 one whose type is known; engines raise these:
            Unknown  InvalidArgument  CannotConnect  Disconnected  ConnectionTimeout
            ResponseTimeout  Cancelled  EngineShutdown  StreamIncomplete
            Unavailable  ResourceExhausted
        StreamInterrupted             the stream ended before its final

``retryable`` says whether trying again can help, ``error_type`` which of Dynamo's
``errors_total`` labels the worker counts.
"""

from typing import ClassVar

from dialback.metrics.names import ErrorType


class DialbackError(Exception):
    """Root of all errors that dialback raises.

    Attributes:
        retryable: Whether the same call can succeed later.
        error_type: Dynamo's ``error_type`` label, where one belongs to the error.
    """

    retryable: ClassVar[bool] = False
    error_type: ClassVar[ErrorType | None] = None


class ConfigError(DialbackError, ValueError):
    """A setting, a name or an engine reference is wrong; the text says how to put it right."""


# --- the wire -------------------------------------------------------------------------


class ProtocolError(DialbackError):
    """The peer, or a message, broke the wire protocol. The same bytes fail again."""


class FrameTooLargeError(ProtocolError):
    """A frame announces more bytes than the decoder accepts.

    Attributes:
        size: Announced size of the part, in bytes.
        limit: Largest size accepted, in bytes.
    """

    error_type = ErrorType.INVALID_MESSAGE

    def __init__(self, part: str, size: int, limit: int) -> None:
        super().__init__(f"message too large: {part} of {size} bytes, limit {limit}")
        self.size = size
        self.limit = limit


class TruncatedFrameError(ProtocolError):
    """A payload ends before the two-part message that it announces.

    Attributes:
        received: Bytes that are there.
        expected: Bytes that the prefix announces (at least 24).
    """

    error_type = ErrorType.INVALID_MESSAGE

    def __init__(self, received: int, expected: int) -> None:
        super().__init__(
            f"Invalid message: No message decoded (got {received} bytes, expected {expected})"
        )
        self.received = received
        self.expected = expected


class ChecksumError(ProtocolError):
    """A verified checksum does not match (only when verification is asked for).

    Attributes:
        announced: The prefix's value.
        computed: XXH3-64 over header and data.
    """

    error_type = ErrorType.INVALID_MESSAGE

    def __init__(self, announced: int, computed: int) -> None:
        super().__init__(f"checksum mismatch: announced {announced:016x}, computed {computed:016x}")
        self.announced = announced
        self.computed = computed


class InvalidMessageError(ProtocolError):
    """A two-part message of the wrong kind: header-only, data-only or empty."""

    error_type = ErrorType.INVALID_MESSAGE


class DeserializationError(ProtocolError):
    """A header or data part that is not what the protocol says it is."""

    error_type = ErrorType.DESERIALIZATION


class SerializationError(DialbackError):
    """The engine yielded a value that cannot be written in the request's codec."""

    error_type = ErrorType.SERIALIZATION


# --- the back-channel -------------------------------------------------------------------


class ResponseStreamError(DialbackError):
    """No back-channel to the requester."""

    error_type = ErrorType.RESPONSE_STREAM


class ConnectionInfoError(ResponseStreamError):
    """The connection info names no address that can be dialled."""


class CallHomeForbiddenError(ConnectionInfoError):
    """The address resolves to a network outside the call-home allow-list.

    Attributes:
        address: The resolved IP address.
    """

    def __init__(self, host: str, address: str) -> None:
        shown = address if host == address else f"{host} ({address})"
        super().__init__(
            f"call-home address {shown} is outside the allowed networks;"
            " add its network to DIALBACK_CALL_HOME_NETWORKS if it is yours"
        )
        self.address = address


class DialError(ResponseStreamError):
    """Nobody could be reached at the address.

    Attributes:
        gone: True when something answered that nobody listens (refused, reset);
            False when nothing answered (timeout, no route, unknown name).
        attempts: Dial attempts made.
    """

    retryable = True

    def __init__(self, message: str, *, gone: bool, attempts: int = 1) -> None:
        super().__init__(message)
        self.gone = gone
        self.attempts = attempts


class PublishError(DialbackError):
    """A frame could not be written to the requester.

    Attributes:
        client_gone: True when the peer closed or reset the connection, False when the
            network failed or made no progress.
    """

    def __init__(self, message: str, *, client_gone: bool) -> None:
        super().__init__(message)
        self.client_gone = client_gone


class StreamSupersededError(DialbackError):
    """A newer delivery of the same request serves its stream; this one settles nothing.

    Attributes:
        delivery: The newer one's number.
    """

    def __init__(self, delivery: int) -> None:
        super().__init__(f"delivery {delivery} of the request serves its stream")
        self.delivery = delivery


# --- the queue ----------------------------------------------------------------------------


class QueueError(DialbackError):
    """Something on the JetStream side."""


class ServerUnavailableError(QueueError):
    """No nats-server answers, or JetStream is not there (yet)."""

    retryable = True


class StreamMissingError(QueueError):
    """No stream takes this endpoint's messages."""


class QueueFullError(QueueError):
    """The stream is at its limit and refuses new messages; nothing was stored."""

    retryable = True


class PayloadTooLargeError(QueueError):
    """The request is larger than the server or the stream accepts.

    Attributes:
        size: Bytes of the payload.
        limit: Bytes accepted, 0 when the server did not say.
    """

    def __init__(self, size: int, limit: int) -> None:
        allowed = f"; the limit is {limit} bytes" if limit else ""
        super().__init__(
            f"request payload of {size} bytes is too large{allowed}: send less,"
            " or raise max_payload in the server's configuration (and the stream's max_msg_size)"
        )
        self.size = size
        self.limit = limit


class DuplicateRequestError(QueueError):
    """The stream has seen this request id within its duplicate window; nothing was stored."""


class ConfigMismatchError(QueueError):
    """A stream or consumer exists with other settings than needed; it was not touched.

    Attributes:
        differences: One sentence for each setting that differs.
    """

    def __init__(self, what: str, differences: tuple[str, ...]) -> None:
        super().__init__(f"{what} exists with other settings: " + "; ".join(differences))
        self.differences = differences


class PermissionDeniedError(QueueError):
    """NATS refuses the user, or the user may not do this."""


class NotFoundError(QueueError):
    """No such queue, message or dead letter."""


# --- what a caller's stream raises --------------------------------------------------------


class RequestError(DialbackError):
    """A request did not bring the answer that was asked for."""


class RequestTimeoutError(RequestError, TimeoutError):
    """Neither a dial-back nor a first item came within ``timeout`` seconds."""

    retryable = True


class DeadlineExceededError(RequestError, TimeoutError):
    """The stream did not end within ``deadline`` seconds."""


class EngineRefusedError(RequestError):
    """The engine refused the request before it answered anything (error prologue)."""


class ResponseError(RequestError):
    """The stream carried an error item.

    Attributes:
        kind: The error's type, for instance ``Backend InvalidArgument``.
        message: What the worker said.
        error_class: Dynamo 1.6's class, for instance ``InvalidRequest``, or None.
        reason: Dynamo 1.6's reason, for instance ``backend.invalid_argument``, or None.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        error_class: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.error_class = error_class
        self.reason = reason


class EngineError(ResponseError):
    """What an engine raises to say what kind of error it is; the caller's stream raises it too.

    Raised while the engine is iterated it becomes an error item with this type, class and
    reason; raised by calling the engine, a refusal that carries them. The names are Dynamo's
    (protocol sections 10.3 to 10.5), which its callers act upon.

    Attributes:
        name: Dynamo's name of the type.
        backend: Whether the type is a ``Backend`` sub-type on the wire.
        default_class: Release 1.6's class.
        default_reason: Release 1.6's reason.
    """

    name: ClassVar[str] = "Unknown"
    backend: ClassVar[bool] = True
    default_class: ClassVar[str] = "Internal"
    default_reason: ClassVar[str] = "backend.unknown"

    def __init__(
        self,
        message: str = "",
        *,
        kind: str | None = None,
        error_class: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(
            kind or (f"Backend {self.name}" if self.backend else self.name),
            message,
            error_class=error_class or self.default_class,
            reason=reason or self.default_reason,
        )


class Unknown(EngineError):  # noqa: N818 -- Dynamo's names, here and below
    """Anything else."""


class InvalidArgument(EngineError):  # noqa: N818
    """The request is wrong: the same request will fail again."""

    name = "InvalidArgument"
    default_class = "InvalidRequest"
    default_reason = "backend.invalid_argument"


class CannotConnect(EngineError):  # noqa: N818
    """The engine could not reach what it needs. Dynamo tries another worker."""

    retryable = True
    name = "CannotConnect"
    default_class = "Unavailable"
    default_reason = "backend.cannot_connect"


class Disconnected(EngineError):  # noqa: N818
    """The engine lost what it needs in mid-work. Dynamo tries another worker."""

    retryable = True
    name = "Disconnected"
    default_class = "Unavailable"
    default_reason = "backend.disconnected"


class ConnectionTimeout(EngineError):  # noqa: N818
    """What the engine needs did not answer in time."""

    retryable = True
    name = "ConnectionTimeout"
    default_class = "DeadlineExceeded"
    default_reason = "backend.connection_timeout"


class ResponseTimeout(EngineError):  # noqa: N818
    """The answer took too long."""

    retryable = True
    name = "ResponseTimeout"
    default_class = "DeadlineExceeded"
    default_reason = "backend.response_timeout"


class Cancelled(EngineError):  # noqa: N818
    """The request was cancelled."""

    name = "Cancelled"
    default_class = "Cancelled"
    default_reason = "backend.cancelled"


class EngineShutdown(EngineError):  # noqa: N818
    """The engine is going away. Dynamo tries another worker."""

    retryable = True
    name = "EngineShutdown"
    default_class = "Unavailable"
    default_reason = "backend.engine_shutdown"


class StreamIncomplete(EngineError):  # noqa: N818
    """The engine's own source ended too early."""

    retryable = True
    name = "StreamIncomplete"
    default_class = "Unavailable"
    default_reason = "backend.stream_incomplete"


class Unavailable(EngineError):  # noqa: N818
    """The engine cannot serve now."""

    retryable = True
    backend = False
    name = "Unavailable"
    default_class = "Unavailable"
    default_reason = "backend.unavailable"


class ResourceExhausted(EngineError):  # noqa: N818
    """The engine has no room for this request now."""

    retryable = True
    backend = False
    name = "ResourceExhausted"
    default_class = "CapacityExhausted"
    default_reason = "capacity.exhausted"


class StreamInterrupted(RequestError):  # noqa: N818 -- the public name, as the glossary has it
    """The stream ended before its final: what was received may not be all.

    Attributes:
        items: Items received before the end.
    """

    retryable = True

    def __init__(self, items: int, why: str) -> None:
        super().__init__(f"stream ended before generation completed, after {items} items: {why}")
        self.items = items
