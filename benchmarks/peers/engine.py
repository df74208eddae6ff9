"""The one engine of all scenarios, run unchanged by Dynamo's worker and by dialback's.

A request says what to do: ``n`` items, each with ``size`` characters of text (0: none), after
``pause`` seconds (0: none), and after a turn of the event loop if ``turn`` is true. An item is
``{"i": its number, "t": when it was made, "text": the text}``; the moment is in nanoseconds of
the monotonic clock, which all processes of a host share on Linux.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any


async def generate(request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
    """Answer one request."""
    del context
    pause, turn = request["pause"], request["turn"]
    text = {"text": "x" * request["size"]} if request["size"] else {}
    for i in range(request["n"]):
        if pause:
            await asyncio.sleep(pause)
        if turn:
            await asyncio.sleep(0)
        yield {"i": i, "t": time.monotonic_ns(), **text}
