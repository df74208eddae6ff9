"""Deliveries that are taken away: before their engine runs, and while its stream is ended."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dialback.ingress.response import StreamEnd
from dialback.outcomes import Delivery, HandedBack, Revocation, Revoked, Superseded
from dialback.transport.response_stream import WorkerEvent
from dialback.transport.sender import ResponseSender

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
    scope = _Scope()

    def cut(reason: Revoked) -> None:
        if reason is not but:
            scope.cut()

    try:
        async with scope.timeout:
            revocation.on_revoked(cut)
            return await work
    except TimeoutError:
        if not scope.timeout.expired():
            raise
        return None
    finally:
        revocation.forget(cut)


async def unless_cut(
    work: Awaitable[None],
    sender: ResponseSender,
    revocation: Revocation,
    end_linger: Callable[[], None],
) -> StreamEnd | None:
    """Await the writing of a stream's end; a kill or a lost lease cuts it short.

    Args:
        work: Writes the end and waits for the requester's FIN.
        sender: The response stream.
        revocation: The delivery's.
        end_linger: Ends the wait for the FIN, soon; called at a shutdown.

    Raises:
        PublishError: What ``work`` raises.
    """
    scope = _Scope()
    cuts: list[StreamEnd] = []

    def cut(end: StreamEnd) -> None:
        cuts.append(end)
        scope.cut()

    def on_event(event: WorkerEvent) -> None:
        if event is WorkerEvent.SUPERSEDED:
            cut(StreamEnd.SUPERSEDED)
        if event in (WorkerEvent.KILL, WorkerEvent.VIOLATION):
            cut(StreamEnd.KILLED)

    def on_revoked(reason: Revoked) -> None:
        if reason is Revoked.LEASE_LOST:
            cut(StreamEnd.LEASE_LOST)
        else:
            end_linger()

    try:
        async with scope.timeout:
            sender.on_event(on_event)
            revocation.on_revoked(on_revoked)
            await work
    except TimeoutError:
        if not scope.timeout.expired():
            raise
        return cuts[0]
    finally:
        sender.on_event(_nothing)
        revocation.forget(on_revoked)
    return None


class _Scope:
    """An await that can be cut short from outside, in the task that makes it.

    asyncio's own timeout, without a time: a task of its own for each step of a request would cost
    as much as the step.
    """

    def __init__(self) -> None:
        self.timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    def cut(self) -> None:
        if not self.timeout.expired():
            self.timeout.reschedule(self._loop.time())


def _nothing(event: WorkerEvent) -> None:
    del event
