"""The one engine of the suite, written for Dynamo's Python binding.

Dynamo's worker and ours run this file unchanged. A request says what to do, in this order:

``refuse`` with a text; ``meet`` so many requests of one ``place``; ``tell`` what the context
knows; yield ``values``, then ``n`` items of ``size`` characters; ``then`` ``break``, ``wait``
for a stop, or ``flow`` until one. ``error`` names the exception to refuse or break with.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

observers: list[Callable[[str, str], None]] = []
"""Called with a request's id and what its engine saw: started, then ended, stopped or killed."""
ERRORS: dict[str, Callable[[str], BaseException]] = {
    **{
        error.__name__: error
        for error in (
            *(ValueError, TypeError, ConnectionError, ConnectionResetError, TimeoutError),
            *(RuntimeError, KeyError, OSError, AssertionError, NotImplementedError),
            GeneratorExit,
        )
    },
    "CancelledError": lambda _: asyncio.CancelledError(),  # nobody cancels with a text
}
"""Exceptions by name; each side adds its own classes of :data:`DYNAMO_ERRORS`."""

DYNAMO_ERRORS = (
    *("Unknown", "InvalidArgument", "CannotConnect", "Disconnected"),
    *("ConnectionTimeout", "Cancelled", "EngineShutdown", "StreamIncomplete"),
)

_places: dict[str, asyncio.Barrier] = {}


def generate(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    """Refuse at the call, or return the stream."""
    if text := request.get("refuse"):
        raise ERRORS[request.get("error", "ValueError")](text)
    return _observed(request, context)


async def _observed(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    _saw(context, "started")
    try:
        async for item in _items(request, context):
            yield item
    finally:
        seen = "killed" if context.is_killed() else "stopped" if context.is_stopped() else "ended"
        _saw(context, seen)


async def _items(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    if others := request.get("meet"):
        await _places.setdefault(request["place"], asyncio.Barrier(others)).wait()
    if request.get("tell"):
        yield {"id": context.id(), "metadata": dict(context.metadata)}
    for value in request.get("values", []):
        yield value
    filling = "x" * request.get("size", 0)
    for i in range(request.get("n", 0)):
        yield {"i": i, "text": filling} if filling else {"i": i}
    match request.get("then"):
        case "break":
            raise ERRORS[request.get("error", "RuntimeError")]("this engine broke")
        case "wait":
            await context.async_killed_or_stopped()
        case "flow":
            i = request.get("n", 0)
            while not context.is_stopped():
                yield {"i": i}
                i += 1
                await asyncio.sleep(0.005)
        case _:
            pass


def _saw(context: Any, what: str) -> None:
    for observer in observers:
        observer(context.id(), what)
