"""Misbehaves on request, for drills and tests: ``{"mode": "break", "after": 2}``."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from dialback import Context


def generate(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, int]]:
    """Refuse at once in mode ``refuse``; else return a stream that misbehaves later."""
    if request["mode"] == "refuse":
        raise ValueError("this engine refuses")
    return _stream(request, context)


async def _stream(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, int]]:
    """Yield ``after`` items, then break, block, hang, or go on for ever without awaiting."""
    for i in range(request.get("after", 2)):
        yield {"i": i}
    match request["mode"]:
        case "break":
            raise RuntimeError("this engine broke")
        case "block":
            time.sleep(request.get("seconds", 1))  # noqa: ASYNC251 -- the misbehaviour
            yield {"blocked": 1}
        case "hang":
            await asyncio.sleep(request.get("seconds", 3600))
        case "flood":
            while not context.is_stopped():
                yield {"flood": 1}
        case "stubborn":
            while True:
                await asyncio.sleep(0.01)
                yield {"stubborn": 1}
        case "unserialisable":
            yield {"what": object()}  # type: ignore[dict-item]
        case _:
            return
