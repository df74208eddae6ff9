"""Errors as Dynamo's callers expect them: a Python exception turned into a DynamoError.

Pure. Both releases can read what is written: ``error_type`` and ``message`` for 1.3,
``class``, ``reason`` and ``diagnostic`` beside them for 1.6.

Source: protocol sections 10.3 to 10.5.
"""

import asyncio
from typing import Final

from dialback.transport.messages import DynamoError, ResponseStreamPrologue

_MAX_DIAGNOSTIC_BYTES: Final = 4096
_CUT: Final = "...[truncated]"

_CLASS_OF: Final = {
    "CannotConnect": "Unavailable",
    "Disconnected": "Unavailable",
    "EngineShutdown": "Unavailable",
    "StreamIncomplete": "Unavailable",
    "ConnectionTimeout": "DeadlineExceeded",
    "ResponseTimeout": "DeadlineExceeded",
    "InvalidArgument": "InvalidRequest",
    "Cancelled": "Cancelled",
    "Unknown": "Internal",
}
_REASON_OF: Final = {
    "CannotConnect": "backend.cannot_connect",
    "Disconnected": "backend.disconnected",
    "EngineShutdown": "backend.engine_shutdown",
    "StreamIncomplete": "backend.stream_incomplete",
    "ConnectionTimeout": "backend.connection_timeout",
    "ResponseTimeout": "backend.response_timeout",
    "InvalidArgument": "backend.invalid_argument",
    "Cancelled": "backend.cancelled",
    "Unknown": "backend.unknown",
}
_TYPE_OF: Final[tuple[tuple[tuple[type[BaseException], ...], str], ...]] = (
    ((ValueError, TypeError), "InvalidArgument"),
    ((ConnectionError,), "Disconnected"),
    ((TimeoutError,), "ConnectionTimeout"),
    ((asyncio.CancelledError,), "Cancelled"),
    ((GeneratorExit,), "EngineShutdown"),
)


def backend_error(name: str, message: str) -> DynamoError:
    """Return a ``Backend`` error of one of the sub-types of protocol section 10.3."""
    return DynamoError(
        error_type={"Backend": name},
        error_class=_CLASS_OF[name],
        reason=_REASON_OF[name],
        message=message,
        diagnostic=_diagnostic(message),
    )


def error_item_of(exception: BaseException) -> DynamoError:
    """Return the error item of an exception raised while the engine was iterated."""
    if isinstance(exception, GeneratorExit):
        return backend_error("EngineShutdown", "engine shutting down")
    name = next((name for kinds, name in _TYPE_OF if isinstance(exception, kinds)), "Unknown")
    return backend_error(name, describe(exception))


def refusal_of(exception: BaseException) -> ResponseStreamPrologue:
    """Return the error prologue of an exception raised by calling the engine."""
    message = describe(exception)
    typed = DynamoError(
        error_type="Unknown",
        error_class="Internal",
        reason="runtime.unclassified",
        message=message,
        diagnostic=_diagnostic(message),
    )
    return ResponseStreamPrologue(error=f"Generate Error: {message}", typed_error=typed)


def describe(exception: BaseException) -> str:
    """Return ``ValueError: what it says``, as Dynamo's Python binding writes it.

    Half a surrogate pair (a file name that is not UTF-8) has no form on the wire.
    """
    text = f"{type(exception).__name__}: {exception}"
    return text.encode(errors="backslashreplace").decode()


def _diagnostic(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= _MAX_DIAGNOSTIC_BYTES:
        return message
    return encoded[: _MAX_DIAGNOSTIC_BYTES - len(_CUT)].decode(errors="ignore") + _CUT
