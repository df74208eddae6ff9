"""Counts to ``n``, with ``delay`` seconds before each item: ``{"n": 5, "delay": 0.1}``."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dialback import Context


async def generate(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, int]]:
    """Yield ``{"i": 0}``, ``{"i": 1}`` … until the end or the caller's stop."""
    for i in range(request["n"]):
        if delay := request.get("delay"):
            await asyncio.sleep(delay)
        if context.is_stopped():
            return
        yield {"i": i}
