"""A language model's timing without the model: ``{"prompt": "hello", "tokens": 20}``."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

from dialback import Context

FIRST_TOKEN = 0.2  # seconds
TOKENS_PER_SECOND = 40.0


class FakeLLM:
    """Answers a prompt with its own words, over and over, at a steady rate.

    It can go on where another worker was lost.
    """

    resume = "continue"

    async def startup(self) -> None:
        """Load what a model would load."""
        await asyncio.sleep(0)

    async def generate(
        self, request: dict[str, Any], context: Context
    ) -> AsyncIterator[dict[str, str]]:
        """Yield one token at a time."""
        rate = request.get("rate", TOKENS_PER_SECOND)
        words = itertools.cycle(str(request["prompt"]).split() or ["…"])
        await asyncio.sleep(FIRST_TOKEN)
        for word in itertools.islice(words, context.resume_from, request.get("tokens", 20)):
            if context.is_stopped():
                return
            yield {"token": word + " "}
            await asyncio.sleep(1 / rate)
