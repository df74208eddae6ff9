"""Engines whose streams survive their worker: ``{"n": 200, "delay": 0.01}``.

``continuing`` starts at the item that the caller wants next; use it when the position is all
that a new worker needs. ``replaying`` runs again from the start, and the worker drops what the
caller has; use it when the same request always gives the same items.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import dialback


@dialback.engine(resume="continue")
async def continuing(
    request: dict[str, Any], context: dialback.Context
) -> AsyncIterator[dict[str, int]]:
    """Yield ``{"i": context.resume_from}`` and so on, up to ``n``."""
    for i in range(context.resume_from, request["n"]):
        yield {"i": i}
        await asyncio.sleep(request.get("delay", 0))


@dialback.engine(resume="replay")
async def replaying(request: dict[str, Any]) -> AsyncIterator[dict[str, int]]:
    """Yield ``{"i": 0}``, ``{"i": 1}`` … up to ``n``, the same with each run."""
    for i in range(request["n"]):
        yield {"i": i}
        await asyncio.sleep(request.get("delay", 0))
