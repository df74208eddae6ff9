"""Errors as Dynamo's callers expect them: a Python exception to a DynamoError, and back.

Pure. Both releases can read what is written: ``error_type`` and ``message`` for 1.3,
``class``, ``reason`` and ``diagnostic`` beside them for 1.6.

Source: protocol sections 10.3 to 10.5.
"""

import asyncio
from typing import Final

import msgspec

from dialback.errors import (
    Cancelled,
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    EngineError,
    EngineRefusedError,
    EngineShutdown,
    InvalidArgument,
    ResourceExhausted,
    ResponseError,
    ResponseTimeout,
    StreamIncomplete,
    Unavailable,
    Unknown,
)
from dialback.transport.messages import DynamoError, ResponseStreamPrologue

_MAX_DIAGNOSTIC_BYTES: Final = 4096
_CUT: Final = "...[truncated]"

STREAM_INTERRUPTED_REASON: Final = "dialback.stream_interrupted"
"""Reason of the error item that a requester of ours raises as ``StreamInterrupted``."""

ENGINE_ERRORS: Final[dict[str, type[EngineError]]] = {
    kind.name: kind
    for kind in (
        Unknown,
        InvalidArgument,
        CannotConnect,
        Disconnected,
        ConnectionTimeout,
        ResponseTimeout,
        Cancelled,
        EngineShutdown,
        StreamIncomplete,
        Unavailable,
        ResourceExhausted,
    )
}
"""Dynamo's type names and our exception classes for them."""

# Python's own exceptions, as Dynamo's Python binding reads them (protocol section 10.5).
_KIND_OF: Final[tuple[tuple[tuple[type[BaseException], ...], type[EngineError]], ...]] = (
    ((ValueError, TypeError), InvalidArgument),
    ((ConnectionError,), Disconnected),
    ((TimeoutError,), ConnectionTimeout),
    ((asyncio.CancelledError,), Cancelled),
)

# Release 1.6: a reason belongs to one class; the part before the dot does not tell which.
_CLASS_OF_REASON: Final = {
    "runtime.unclassified": "Internal",
    "runtime.invalid_error": "Internal",
    "runtime.internal": "Internal",
    "transport.cannot_connect": "Unavailable",
    "transport.disconnected": "Unavailable",
    "transport.connection_timeout": "DeadlineExceeded",
    "request.invalid_argument": "InvalidRequest",
    "request.invalid": "InvalidRequest",
    "request.cancelled": "Cancelled",
    "request.deadline_exceeded": "DeadlineExceeded",
    "backend.worker_unavailable": "Unavailable",
    "capacity.worker_overloaded": "CapacityExhausted",
    "capacity.pool_exhausted": "CapacityExhausted",
} | {kind.default_reason: kind.default_class for kind in ENGINE_ERRORS.values()}


# --- written --------------------------------------------------------------------------------


def dynamo_error(error: EngineError) -> DynamoError:
    """Return an engine's error as Dynamo writes it."""
    public = {"type": "message", "message": error.message}
    return DynamoError(
        error_type={"Backend": error.name} if error.backend else error.name,
        error_class=error.error_class,
        reason=error.reason,
        message=error.message,
        diagnostic=_diagnostic(error.message),
        public=public if isinstance(error, InvalidArgument) else None,
    )


def backend_error(kind: type[EngineError], message: str) -> DynamoError:
    """Return an error of our own making, which has no text for an end user."""
    return msgspec.structs.replace(dynamo_error(kind(message)), public=None)


def interrupted_error(message: str) -> DynamoError:
    """Return the error item of a resumable stream that nobody can go on with.

    Args:
        message: Why, as half a sentence.
    """
    error = backend_error(StreamIncomplete, message)
    return msgspec.structs.replace(error, reason=STREAM_INTERRUPTED_REASON)


def error_item_of(exception: BaseException) -> DynamoError:
    """Return the error item of an exception raised while the engine was iterated."""
    if isinstance(exception, EngineError):
        return dynamo_error(exception)
    if isinstance(exception, GeneratorExit):
        return backend_error(EngineShutdown, "engine shutting down")
    kind = next((kind for kinds, kind in _KIND_OF if isinstance(exception, kinds)), Unknown)
    return backend_error(kind, describe(exception))


def refusal_of(exception: BaseException) -> ResponseStreamPrologue:
    """Return the error prologue of an exception raised by calling the engine."""
    message = describe(exception)
    if isinstance(exception, EngineError):
        typed = dynamo_error(exception)
    else:
        typed = DynamoError(
            error_type="Unknown",
            error_class="Internal",
            reason="runtime.unclassified",
            message=message,
            diagnostic=_diagnostic(message),
        )
    return ResponseStreamPrologue(error=f"Generate Error: {message}", typed_error=typed)


# --- read -----------------------------------------------------------------------------------


def read_error(error: DynamoError) -> ResponseError:
    """Return the exception that a caller's stream raises for an error.

    Without class and reason (release 1.3) they follow from the type; a reason that is not
    the class's is no reason (protocol section 10.4).
    """
    name = error.error_type if isinstance(error.error_type, str) else _sub_type(error.error_type)
    kind = ENGINE_ERRORS.get(name)
    if kind is None:
        return ResponseError(
            error.kind, error.message, error_class=error.error_class, reason=error.reason
        )
    error_class, reason = error.error_class, error.reason
    if error_class is None or reason is None:
        error_class, reason = kind.default_class, kind.default_reason
    elif _CLASS_OF_REASON.get(reason, error_class) != error_class:
        error_class, reason = "Internal", "runtime.invalid_error"
    return kind(error.message, kind=error.kind, error_class=error_class, reason=reason)


def read_refusal(prologue: ResponseStreamPrologue) -> EngineRefusedError:
    """Return the exception for an error prologue; a typed error is its cause."""
    refused = EngineRefusedError(prologue.error or "refused without a reason")
    if isinstance(prologue.typed_error, DynamoError):
        refused.__cause__ = read_error(prologue.typed_error)
    return refused


def _sub_type(error_type: dict[str, str]) -> str:
    return next(iter(error_type.values()), "")


def describe(exception: BaseException) -> str:
    """Return ``ValueError: what it says``, as Dynamo's Python binding writes it.

    Half a surrogate pair (a file name that is not UTF-8) has no form on the wire.
    """
    what = exception.message if isinstance(exception, ResponseError) else exception
    text = f"{type(exception).__name__}: {what}"
    return text.encode(errors="backslashreplace").decode()


def _diagnostic(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= _MAX_DIAGNOSTIC_BYTES:
        return message
    return encoded[: _MAX_DIAGNOSTIC_BYTES - len(_CUT)].decode(errors="ignore") + _CUT
