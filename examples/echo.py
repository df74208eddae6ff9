"""The smallest engine: says back what it was asked."""

from collections.abc import AsyncIterator
from typing import Any

from dialback import Context


async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yield the request itself."""
    yield request
