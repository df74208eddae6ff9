"""A request prepared for publishing: validated, written, pure.

Everything that can be wrong with a request is said here, before anything is registered or
sent. Source: protocol sections 4 and 5.3, overview section 2.
"""

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self, TypeVar

from dialback.errors import ConfigError, PayloadTooLargeError
from dialback.ingress.context import Context
from dialback.queue.dead_letter import subject_token
from dialback.queue.publisher import MESSAGE_ID_HEADER
from dialback.queue.topology import Endpoint, Lane
from dialback.transport.items import encode_value
from dialback.transport.line import Resumable
from dialback.transport.messages import (
    PayloadCodec,
    RequestControlMessage,
    RequestType,
    ResponseType,
    StreamType,
    TcpConnectionInfo,
    encode_request_control,
    encode_tcp_info,
)
from dialback.transport.request_headers import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    SEND_TIME_HEADER,
    START_BY_HEADER,
)
from dialback.transport.two_part import MAX_DATA_BYTES, MAX_REQUEST_HEADER_BYTES, encode

_NS: Final = 1_000_000_000
_SHORT_ID: Final = 1024  # characters; without metadata its control message cannot be too large
_SUBJECT_SIZE: Final = 36  # a UUID
_ADDRESS_SIZE: Final = 64  # a generous host:port
HISTORY_BYTES: Final = 16 * 1024 * 1024
"""Items of one stream that are kept for its next worker, unless another number is given."""
_MAX_SECONDS: Final = 1e9
"""31 years; in nanoseconds since 1970 it still fits into 64 bits."""
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # others are not published
_NOTHING: Final[Mapping[str, str]] = {}
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, ready but for the address that it is answered at.

    Attributes:
        request_id: Its id.
        id_is_new: Whether the id was made for it, so that no other request can have it.
        endpoint: Where it is sent.
        subject: NATS subject to publish to.
        codec: Codec of its body and of the answers.
        body: The body, encoded.
        metadata: String map for the engine.
        timeout: Seconds until the first item.
        deadline: Seconds for the whole stream.
        extra_headers: The caller's own NATS headers.
        context: Whose stop and kill are passed on, if any.
        resume: How its stream goes on when a worker is lost; ``None`` if it does not.
    """

    request_id: str
    id_is_new: bool
    endpoint: Endpoint
    subject: str
    codec: PayloadCodec
    body: bytes
    metadata: Mapping[str, str]
    timeout: float
    deadline: float
    extra_headers: Mapping[str, str]
    context: Context | None
    resume: Resumable | None = None

    @classmethod
    def prepare(
        cls,
        endpoint: str,
        value: object,
        *,
        timeout: float,
        deadline: float,
        lane: str,
        codec: str,
        request_id: str | None,
        metadata: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        context: Context | None,
        resume: Resumable | None = None,
    ) -> Self:
        """Check and encode a request.

        Raises:
            ConfigError: If any other argument is wrong.
            SerializationError: If the value cannot be written in the codec.
            PayloadTooLargeError: If id and metadata are over 128 KiB.
        """
        _check_kinds(endpoint, context)
        where = Endpoint.parse(endpoint)
        chosen = _choice(PayloadCodec, "codec", codec)
        name = _chosen_id(request_id) if request_id else str(uuid.uuid4())
        given = _mapping("metadata", metadata) if metadata else _NOTHING
        extra = _headers(headers) if headers else _NOTHING
        inherited = context.metadata if context is not None else _NOTHING
        traced = (context.trace_headers() or {}) if context is not None else {}
        request = cls(
            request_id=name,
            id_is_new=not request_id,
            endpoint=where,
            subject=where.request_subject(_choice(Lane, "lane", lane), subject_token(name)),
            codec=chosen,
            body=encode_value(value, chosen),
            metadata=_texts("metadata", {**inherited, **given}) if inherited or given else _NOTHING,
            timeout=_seconds("timeout", timeout),
            deadline=_seconds("deadline", deadline),
            extra_headers={**traced, **extra},
            context=context,
            resume=resume,
        )
        if request.metadata or len(name) > _SHORT_ID:
            size = len(request._control_message("0" * _SUBJECT_SIZE, "0" * _ADDRESS_SIZE))
            if size > MAX_REQUEST_HEADER_BYTES:
                raise PayloadTooLargeError(size, MAX_REQUEST_HEADER_BYTES)
        return request

    @property
    def patience(self) -> float:
        """Seconds a caller waits for anything at all: the earlier of its two limits."""
        return min(self.timeout, self.deadline)

    def payload(self, subject: str, address: str) -> bytes:
        """Return the two-part message that is answered at ``address`` under ``subject``."""
        return encode(self._control_message(subject, address), self.body)

    def headers(self) -> dict[str, str]:
        """Return the NATS headers, with the limits counted from now."""
        now = time.time_ns()
        return {
            **self.extra_headers,
            REQUEST_ID_HEADER: self.request_id,
            SEND_TIME_HEADER: str(now),
            START_BY_HEADER: str(now + round(self.patience * _NS)),
            DEADLINE_HEADER: str(now + round(self.deadline * _NS)),
            MESSAGE_ID_HEADER: self.request_id,
        }

    def _control_message(self, subject: str, address: str) -> bytes:
        info = TcpConnectionInfo(
            address=address,
            subject=subject,
            context=self.request_id,
            stream_type=StreamType.RESPONSE,
            resumable=int(self.resume is not None),
            reuse=int(self.resume is not None),
        )
        return encode_request_control(
            RequestControlMessage(
                id=self.request_id,
                request_type=RequestType.SINGLE_IN,
                response_type=ResponseType.MANY_OUT,
                payload_codec=self.codec,
                connection_info=encode_tcp_info(info),
                metadata=dict(self.metadata),
            )
        )


def resumption(resumable: bool, timeout: float, keep_history: bool | int) -> Resumable | None:
    """Return how a stream goes on without its worker, from the arguments of ``generate``.

    Raises:
        ConfigError: If the timeout is no number of seconds, or the history no number of bytes
            that fits into one frame.
    """
    if not resumable:
        return None
    _check_bytes("keep_history", keep_history)
    history_bytes = HISTORY_BYTES if keep_history is True else int(keep_history)
    if not 0 <= history_bytes <= MAX_DATA_BYTES:
        raise ConfigError(f"keep_history {keep_history!r} is not within 0 and {MAX_DATA_BYTES}")
    return Resumable(timeout=_seconds("resume_timeout", timeout), history_bytes=history_bytes)


def _choice(kind: type[_Choice], what: str, value: str) -> _Choice:
    if isinstance(value, kind):
        return value
    try:
        return kind(value)
    except ValueError as error:
        allowed = ", ".join(kind)
        raise ConfigError(f"{what} {value!r} is none of {allowed}") from error


def _seconds(what: str, value: float) -> float:
    try:
        if 0 < value <= _MAX_SECONDS:  # not so for "not a number"
            return float(value)
    except TypeError:
        pass  # no number at all
    raise ConfigError(f"{what} {value!r} is no number of seconds above 0, up to {_MAX_SECONDS:g}")


def _check_bytes(what: str, value: object) -> None:
    if not isinstance(value, int):
        raise ConfigError(f"{what} {value!r} is no bool or number of bytes")


def _check_kinds(endpoint: object, context: object) -> None:
    if not isinstance(endpoint, str):
        raise ConfigError(f"endpoint {endpoint!r} is no text")
    if context is not None and not isinstance(context, Context):
        raise ConfigError(f"context {context!r} is no Context")


def _chosen_id(request_id: str) -> str:
    if not _is_text(request_id):
        raise ConfigError(f"request_id {request_id!r} is no text")
    return request_id


def _headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    checked = _texts("headers", _mapping("headers", headers))
    for name in checked:
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"headers: {name!r} cannot be the name of one")
    return checked


def _mapping(what: str, value: Mapping[str, str]) -> Mapping[str, str]:
    if not _is_mapping(value):
        raise ConfigError(f"{what} {value!r} is no map of strings")
    return value


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _texts(what: str, texts: Mapping[str, str]) -> Mapping[str, str]:
    wrong = [key for key, value in texts.items() if not _is_text(key) or not _is_text(value)]
    if wrong:
        raise ConfigError(f"{what} is a map of strings; {wrong[0]!r} is not")
    return texts


def _is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can write."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
