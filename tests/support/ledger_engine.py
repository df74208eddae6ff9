"""The engine that the ledger judges: each item says whose it is and which; each call is logged."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from dialback import Context

logger = logging.getLogger(__name__)

CALLED = "engine called"


def generate(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """Yield ``n`` items with ``delay`` seconds before each, and ``size`` bytes in each.

    ``fault`` says what goes wrong: ``refuse`` at once, or after ``at`` items ``break`` (an
    exception), ``die`` (the process kills itself), ``hang`` (for ever, on the first
    ``deliveries`` deliveries).
    """
    facts = {"pid": os.getpid(), "request_id": context.id(), "delivery": context.delivery}
    logger.info(CALLED, extra=facts)
    if request.get("fault") == "refuse":
        raise ValueError("this engine refuses")
    return _stream(request, context)


async def _stream(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    filling = "x" * request.get("size", 0)
    for i in range(request["n"]):
        if i == request.get("at", -1):
            await _misbehave(request, context)
        await asyncio.sleep(request.get("delay", 0))
        if context.is_stopped():
            return
        yield {"id": context.id(), "i": i, "filling": filling}


async def _misbehave(request: dict[str, Any], context: Context) -> None:
    match request.get("fault"):
        case "break":
            raise RuntimeError("this engine broke")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang" if context.delivery <= request.get("deliveries", 1):
            await asyncio.Event().wait()
        case _:
            return
