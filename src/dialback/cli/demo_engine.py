"""The demo's engine: answers in words, and can go on where another worker was killed."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Final

from dialback.ingress.context import Context
from dialback.ingress.engine import engine

WORD_DELAY: Final = 0.07
"""Seconds between two words of an answer."""


@engine(resume="continue")
async def generate(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """Yield the words of ``request["text"]``, one item each."""
    words = request["text"].split()
    for index in range(context.resume_from, len(words)):
        if context.is_stopped():
            return
        yield {"i": index, "word": words[index], "pid": os.getpid()}
        await asyncio.sleep(WORD_DELAY)
