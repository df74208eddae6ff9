"""How a delivery and its request end: the plain values that the queue and the ingress share.

No I/O and no NATS here. What is made with every delivery is a msgspec struct: a quarter of a frozen
dataclass's time. ``queue`` calls ``handle(delivery)`` and gets an :data:`Ending`;
``queue/policy.py`` decides what becomes of the message. Source: overview, sections 3 and 8.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import msgspec

from dialback.metrics.names import ErrorType


class Outcome(StrEnum):
    """The closed set of ways a request ends. Exactly one per request."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    KILLED = "killed"
    CLIENT_GONE = "client_gone"
    NETWORK_FAILED = "network_failed"
    REQUESTER_GONE = "requester_gone"
    REQUESTER_UNREACHABLE = "requester_unreachable"
    ENGINE_REFUSED = "engine_refused"
    ENGINE_FAILED = "engine_failed"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    POISON = "poison"


class DeliveryEnd(StrEnum):
    """The closed set of ways a delivery ends, its request's end or not."""

    SETTLED = "settled"
    """The request ended: acknowledged, or dead-lettered and terminated."""
    RETRIED = "retried"
    """Handed back with a delay; another delivery will try again."""
    HANDED_BACK = "handed_back"
    """Handed back to another worker, which is no attempt (drain, no free slot)."""
    SUPERSEDED = "superseded"
    """The lease was lost; another worker has the message. Nothing was settled."""
    UNCONFIRMED = "unconfirmed"
    """The server never confirmed the settling; the message will come again."""


class Revoked(StrEnum):
    """Why a delivery is taken away from the request that is using it."""

    SHUTDOWN = "shutdown"
    LEASE_LOST = "lease_lost"
    CANCELLED = "cancelled"


class Revocation:
    """A one-shot signal that takes a running delivery away; the first reason stays.

    ``set`` is called by the queue on the event loop; the ingress awaits ``wait()``
    or registers a callback, which is called at most once. Before it may come a wish:
    ``offer_handover`` at the beginning of a drain. Whoever can hand its request over to another
    worker does so, others finish.
    """

    __slots__ = ("_callbacks", "_event", "_offered", "_takers", "detail", "reason")

    def __init__(self) -> None:
        self.reason: Revoked | None = None
        self.detail = ""
        self._event: asyncio.Event | None = None  # few wait, and an event is made of much
        self._callbacks: list[Callable[[Revoked], None]] = []
        self._offered = False
        self._takers: list[Callable[[], None]] = []

    def offer_handover(self) -> None:
        """The worker drains: a request that another can go on with may be handed over now."""
        if self._offered:
            return
        self._offered = True
        for taker in self._takers:
            taker()

    def on_handover_offered(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` when a hand-over is offered, or now if it has been."""
        if self._offered:
            callback()
        else:
            self._takers.append(callback)

    def set(self, reason: Revoked, detail: str = "") -> None:
        """Revoke the delivery; ``detail`` says why. A second call changes nothing."""
        if self.reason is not None:
            return
        self.reason = reason
        self.detail = detail
        if self._event is not None:
            self._event.set()
        for callback in self._callbacks:
            callback(reason)

    def on_revoked(self, callback: Callable[[Revoked], None]) -> None:
        """Call ``callback(reason)`` when revoked, or now if that has happened."""
        if self.reason is not None:
            callback(self.reason)
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[Revoked], None]) -> None:
        """Do not call ``callback`` any more; one that is not known is nothing."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    async def wait(self) -> Revoked:
        """Return the reason once the delivery is revoked."""
        if self.reason is None:
            self._event = self._event or asyncio.Event()
            await self._event.wait()
        assert self.reason is not None  # noqa: S101 -- set() writes it first
        return self.reason

    def close(self) -> None:
        """The delivery is over: call nobody any more, and keep nobody alive."""
        self._callbacks.clear()
        self._takers.clear()


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery of one request message, as the ingress sees it.

    Attributes:
        payload: The message's bytes: one two-part message.
        headers: The message's NATS headers.
        subject: The subject it was published to.
        lane: ``high``, ``normal`` or ``low``.
        stream: Name of the JetStream stream.
        sequence: The message's sequence in that stream.
        number: 1 for the first delivery (JetStream's ``num_delivered``).
        redelivered: Whether it may have been delivered before. A restarted server begins anew with
            the numbers of the deliveries that it forgot.
        published_ns: When the stream stored it, Unix nanoseconds.
        attempts: Earlier deliveries in which the requester could not be reached.
        crashes: Earlier deliveries whose worker died without saying how they ended.
        epoch: When the lane's consumer was created, Unix nanoseconds: with a new consumer the
            delivery numbers begin anew. 0 if that is not known.
        revocation: Signals shutdown or a lost lease while the request runs.
    """

    payload: bytes
    headers: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])
    subject: str = ""
    lane: str = "normal"
    stream: str = ""
    sequence: int = 0
    number: int = 1
    redelivered: bool = False
    published_ns: int = 0
    attempts: int = 0
    crashes: int = 0
    epoch: int = 0
    revocation: Revocation = msgspec.field(default_factory=Revocation)


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A request ended with an outcome.

    Attributes:
        outcome: How.
        request_id: The control message's id, or what stands for it when unreadable.
        reason: One sentence for the log and the dead letter; empty when completed.
        error_type: Dynamo's error label that was counted, if any.
        caller: Address that was dialled, or empty.
        items: Items written to the response stream.
        response_bytes: Their bytes, finals included.
        time_to_first_response: Seconds from entry to prologue, or None.
        dials: Dial attempts made in this delivery.
        caller_told: Whether an answer (prologue, error item or final) reached the wire.
    """

    outcome: Outcome
    request_id: str
    reason: str = ""
    error_type: ErrorType | None = None
    caller: str = ""
    items: int = 0
    response_bytes: int = 0
    time_to_first_response: float | None = None
    dials: int = 0
    caller_told: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedBack:
    """The delivery ended but not its request: somebody else takes it.

    Attributes:
        request_id: The request's id.
        reason: One sentence for the log.
        delay: Seconds until the next delivery.
        fruitless: Whether it brought nothing new: the more such deliveries a request has, the
            longer the delay.
    """

    request_id: str
    reason: str
    delay: float = 0.0
    fruitless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """The lease was lost while the request ran: nothing may be settled."""

    request_id: str
    reason: str


Ending: TypeAlias = Finished | HandedBack | Superseded

Handle: TypeAlias = Callable[[Delivery], Awaitable[Ending]]
"""What the queue calls for each delivery. It never raises but CancelledError."""
