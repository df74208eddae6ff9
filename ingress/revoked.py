"""Deliveries that are taken away: before their engine runs, and while its stream is ended."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dialback.ingress.response import StreamEnd
from dialback.outcomes import Delivery, HandedBack, Revocation, Revoked, Superseded
from dialback.scopes import Scope
from dialback.transport.response_stream import WorkerEvent
from dialback.transport.sender import ResponseSender

_T = TypeVar("_T")


def handed_back_or_superseded(delivery: Delivery, request_id: str) -> HandedBack | Superseded:
    """Return how a delivery ends that was revoked before its engine ran."""
    if delivery.revocation.reason is Revoked.LEASE_LOST:
        return Superseded(request_id=request_id, reason="lease lost before the engine ran")
    return HandedBack(request_id=request_id, reason="shutdown before the engine ran")


async def unless_revoked(
    work: Coroutine[Any, Any, _T], revocation: Revocation, *, but: Revoked | None = None
) -> _T | None:
    """Await ``work``; cancel it and return ``None`` if the delivery is revoked first.

    Args:
        work: What to await.
        revocation: The delivery's.
        but: A reason that changes nothing here.
    """
    scope = Scope()

    def cut(reason: Revoked) -> None:
        if reason is not but:
            scope.cut()

    revocation.on_revoked(cut)
    try:
        return await scope.run(work)
    finally:
        revocation.forget(cut)


async def unless_cut(
    work: Coroutine[Any, Any, None],
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
    scope = Scope()
    cuts: list[StreamEnd] = []

    def cut(end: StreamEnd) -> None:
        cuts.append(end)
        scope.cut()

    def on_event(event: WorkerEvent) -> None:
        if event is WorkerEvent.SUPERSEDED:
            cut(StreamEnd.SUPERSEDED)
        if event is WorkerEvent.ANSWER:
            cut(StreamEnd.NOT_FIRST)
        if event in (WorkerEvent.KILL, WorkerEvent.VIOLATION):
            cut(StreamEnd.KILLED)

    def on_revoked(reason: Revoked) -> None:
        if reason is Revoked.LEASE_LOST:
            cut(StreamEnd.LEASE_LOST)
        else:
            end_linger()

    sender.on_event(on_event)
    revocation.on_revoked(on_revoked)
    try:
        await scope.run(work)
    finally:
        sender.on_event(_nothing)
        revocation.forget(on_revoked)
    return cuts[0] if scope.ended_it else None


def _nothing(event: WorkerEvent) -> None:
    del event
