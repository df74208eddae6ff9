"""Deliveries that are taken away before their engine runs."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from dialback.outcomes import Delivery, HandedBack, Revocation, Revoked, Superseded

_T = TypeVar("_T")


def handed_back_or_superseded(delivery: Delivery, request_id: str) -> HandedBack | Superseded:
    """Return how a delivery ends that was revoked before its engine ran."""
    if delivery.revocation.reason is Revoked.LEASE_LOST:
        return Superseded(request_id=request_id, reason="lease lost before the engine ran")
    return HandedBack(request_id=request_id, reason="shutdown before the engine ran")


async def unless_revoked(
    work: Awaitable[_T], revocation: Revocation, *, but: Revoked | None = None
) -> _T | None:
    """Await ``work``; cancel it and return ``None`` if the delivery is revoked first.

    Args:
        work: What to await.
        revocation: The delivery's.
        but: A reason that changes nothing here.
    """
    task = asyncio.ensure_future(work)
    cancelled = False

    def cancel(reason: Revoked) -> None:
        nonlocal cancelled
        if reason is not but:
            cancelled = True
            task.cancel()

    revocation.on_revoked(cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if not cancelled or not task.cancelled():
            task.cancel()
            raise
        return None
