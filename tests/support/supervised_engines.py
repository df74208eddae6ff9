"""Engines for tests of worker processes: they say in the log who they are."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from dialback import Context

logger = logging.getLogger(__name__)

CALLED = "engine called"


async def first_delivery_hangs(request: object, context: Context) -> AsyncIterator[dict[str, int]]:
    """Hang on a request's first delivery; answer a later one with the process id."""
    del request
    _say(context)
    if context.delivery == 1:
        await asyncio.Event().wait()
    yield {"pid": os.getpid(), "delivery": context.delivery}


async def first_delivery_blocks(
    request: dict[str, Any], context: Context
) -> AsyncIterator[dict[str, int]]:
    """Block the event loop for ``seconds`` on a request's first delivery, then answer."""
    _say(context)
    if context.delivery == 1:
        time.sleep(request.get("seconds", 0))  # noqa: ASYNC251 -- the misbehaviour
    yield {"pid": os.getpid(), "delivery": context.delivery}


async def first_delivery_exits(request: object, context: Context) -> AsyncIterator[dict[str, int]]:
    """End the process on a request's first delivery, with a good conscience."""
    del request
    _say(context)
    if context.delivery == 1:
        os._exit(0)
    yield {"pid": os.getpid(), "delivery": context.delivery}


class DiesAtTheStart:
    """Ends its process before it is ready."""

    async def startup(self) -> None:
        """End the process as a crash in native code would."""
        os._exit(9)

    async def generate(self, request: object) -> AsyncIterator[object]:
        """Never called."""
        yield request


def _say(context: Context) -> None:
    facts = {"pid": os.getpid(), "request_id": context.id(), "delivery": context.delivery}
    logger.info(CALLED, extra=facts)
