"""The demo's engine: answers in words, and tells its parent process what it has begun."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from dialback.ingress.context import Context

WORD_DELAY: Final = 0.05
"""Seconds between two words of an answer."""
THINKING_TIME: Final = 60.0
"""Seconds the first delivery of a ``think`` request takes before its first word: it is killed."""


async def generate(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """Yield the words of ``request["text"]``, one item each."""
    pid = os.getpid()
    begun = {"begun": context.id(), "pid": pid, "delivery": context.delivery}
    print(orjson.dumps(begun).decode(), flush=True)
    if request.get("think") and context.delivery == 1:
        await asyncio.sleep(THINKING_TIME)
    for index, word in enumerate(request["text"].split()):
        if context.is_stopped():
            return
        yield {"i": index, "word": word, "pid": pid}
        await asyncio.sleep(WORD_DELAY)
