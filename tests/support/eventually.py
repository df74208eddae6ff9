"""Waiting for what another process will do: poll until it holds, or fail with the last value."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    observe: Callable[[], Awaitable[T]],
    holds: Callable[[T], bool] = bool,
    *,
    within: float = 30.0,
    every: float = 0.02,
) -> T:
    """Return the first observed value that holds; fail after ``within`` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        value = await observe()
        if holds(value):
            return value
        if loop.time() > end:
            raise AssertionError(f"still not so after {within:g} s; last seen: {value!r}")
        await asyncio.sleep(every)
