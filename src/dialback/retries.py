"""A first attempt that costs nothing, and tenacity for what comes after it.

Nearly every attempt succeeds at once, and tenacity's machinery round one that does costs as much
as dialling itself (docs/performance.md). So it is only started when the first attempt has failed,
and is given that failure as its own first one: what it stops at and how long it waits is the same.
"""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

_Result = TypeVar("_Result")


async def with_retries(
    attempt: Callable[[], Awaitable[_Result]],
    retrying: Callable[[float], tenacity.AsyncRetrying],
) -> _Result:
    """Return what the first attempt that succeeds returns.

    Args:
        attempt: Makes one attempt.
        retrying: Called when the first attempt has failed, with the seconds it took; returns
            when and how often to try again.

    Raises:
        Exception: What the last attempt raised, or tenacity's ``RetryError``, as ``retrying`` says.
    """
    began = time.monotonic()
    try:
        return await attempt()
    except Exception as error:  # which of them are worth another attempt is tenacity's to say
        first = [error]
    async for again in retrying(time.monotonic() - began):
        with again:
            if first:
                raise first.pop()
            return await attempt()
    raise AssertionError("unreachable")  # pragma: no cover -- tenacity returns or raises
