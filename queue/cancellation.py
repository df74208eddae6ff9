"""An operator's cancel: what a worker hears, and what an operator asks.

Core NATS: a request on ``dialback.NS.COMP.EP.control.cancel`` reaches every worker of the
endpoint; those that run the request answer. A cancel stays in a worker's mind for a while, so
that a delivery that was on its way is not run either. Source: overview section 8.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from dialback.errors import ServerUnavailableError
from dialback.outcomes import Delivery, Ending, Handle, Revoked
from dialback.queue.reading import payload_facts
from dialback.queue.topology import Endpoint
from dialback.transport.request_headers import REQUEST_ID_HEADER

logger = logging.getLogger(__name__)

REMEMBERED_FOR: Final = 600.0
"""Seconds a worker remembers a cancelled id."""
MAX_REMEMBERED: Final = 10_000
ANSWER_WITHIN: Final = 1.0
"""Seconds an operator waits for the workers."""
_SKEW_NS: Final = 1_000_000_000  # between a worker's clock and the server's


class CancelOrder(msgspec.Struct, omit_defaults=True):
    """What an operator asks of all workers of an endpoint.

    Attributes:
        request_id: Which request.
        reason: What its caller is told.
        dry_run: Only say who runs it.
    """

    request_id: str
    reason: str = ""
    dry_run: bool = False


class Running(msgspec.Struct):
    """One delivery of the request, at the worker that runs it.

    Attributes:
        worker: Its name.
        sequence: Of the message.
        lane: Of the message.
        delivery: Its number.
        cancelled: Whether it is being cancelled; false if it was ending already.
    """

    worker: str
    sequence: int
    lane: str
    delivery: int
    cancelled: bool


_order_decoder: Final = msgspec.json.Decoder(CancelOrder)
_answer_decoder: Final = msgspec.json.Decoder(list[Running])


def request_id_of(delivery: Delivery) -> str:
    """Return a delivery's request id, read leniently; empty if it has none."""
    named = payload_facts(delivery.payload).request_id
    return named or delivery.headers.get(REQUEST_ID_HEADER, "")


class Cancellations:
    """Between the consumer and the ingress: which requests run, which were cancelled."""

    def __init__(
        self,
        handle: Handle,
        *,
        worker: str,
        now: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Wrap ``handle``.

        Args:
            handle: Serves deliveries.
            worker: This worker's name, for the operator.
            now: Monotonic clock, seconds.
            now_ns: Wall clock, Unix nanoseconds.
        """
        self._handle = handle
        self._worker = worker
        self._now = now
        self._now_ns = now_ns
        self._running: dict[int, Delivery] = {}  # by identity
        self._cancelled: OrderedDict[str, tuple[float, int, str]] = OrderedDict()

    async def handle(self, delivery: Delivery) -> Ending:
        """Serve a delivery; one whose request was cancelled is revoked before it begins."""
        # Ids are read out of payloads only when there is an order to compare them with.
        if self._cancelled and (reason := self._reason(delivery)) is not None:
            delivery.revocation.set(Revoked.CANCELLED, reason)
        self._running[id(delivery)] = delivery
        try:
            return await self._handle(delivery)
        finally:
            del self._running[id(delivery)]

    def order(self, order: CancelOrder) -> list[Running]:
        """Carry out an operator's order; return what of the request runs here."""
        if not order.dry_run:
            self._remember(order)
        return [
            self._carry_out(order, delivery)
            for delivery in self._running.values()
            if request_id_of(delivery) == order.request_id
        ]

    def _carry_out(self, order: CancelOrder, delivery: Delivery) -> Running:
        revocation = delivery.revocation
        if not order.dry_run:
            revocation.set(Revoked.CANCELLED, order.reason)
        return Running(
            worker=self._worker,
            sequence=delivery.sequence,
            lane=delivery.lane,
            delivery=delivery.number,
            cancelled=revocation.reason is Revoked.CANCELLED,
        )

    def _remember(self, order: CancelOrder) -> None:
        self._cancelled[order.request_id] = (self._now(), self._now_ns(), order.reason)
        self._cancelled.move_to_end(order.request_id)
        while self._cancelled and (
            len(self._cancelled) > MAX_REMEMBERED
            or next(iter(self._cancelled.values()))[0] < self._now() - REMEMBERED_FOR
        ):
            self._cancelled.popitem(last=False)

    def _reason(self, delivery: Delivery) -> str | None:
        """Return why a delivery's request was cancelled; ``None`` if it was not.

        A request of the same id that was published after that is another one.
        """
        at, at_ns, reason = self._cancelled.get(request_id_of(delivery), (0.0, 0, ""))
        known = at_ns and at >= self._now() - REMEMBERED_FOR
        return reason if known and delivery.published_ns <= at_ns + _SKEW_NS else None


class CancelListener:
    """Hears operators' orders on behalf of one worker."""

    def __init__(self, client: Client, endpoint: Endpoint, cancellations: Cancellations) -> None:
        """Listen with a connected client from :meth:`start` to the end of its connection."""
        self._client = client
        self._subject = cancel_subject(endpoint)
        self._cancellations = cancellations

    async def start(self) -> None:
        """Subscribe."""
        await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType]
            self._subject, cb=self._heard
        )

    async def _heard(self, message: Msg) -> None:
        try:
            order = _order_decoder.decode(message.data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            logger.warning("unreadable order to cancel", extra={"subject": message.subject})
            return
        running = self._cancellations.order(order)
        if running and message.reply:
            with suppress(nats.errors.Error):  # the operator asks again
                await message.respond(msgspec.json.encode(running))


def cancel_subject(endpoint: Endpoint) -> str:
    """Return the subject on which workers hear orders to cancel."""
    return f"dialback.{endpoint}.control.cancel"


async def ask_workers(
    client: Client,
    endpoint: Endpoint,
    order: CancelOrder,
    *,
    expected: Iterable[int] = (),
    within: float = ANSWER_WITHIN,
) -> list[Running]:
    """Give an order to all workers of an endpoint; return what they run of the request.

    Args:
        client: A connected client.
        endpoint: Whose workers.
        order: The order.
        expected: Sequences of the request's messages: when all have been heard of, nobody
            is waited for any longer.
        within: Seconds to wait for answers.

    Raises:
        ServerUnavailableError: If the connection is gone.
    """
    missing = set(expected)
    wait_for_all = not missing
    found: list[Running] = []
    try:
        inbox = await client.subscribe(  # pyright: ignore[reportUnknownMemberType]
            client.new_inbox()
        )
        await client.publish(
            cancel_subject(endpoint), msgspec.json.encode(order), reply=inbox.subject
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while missing or wait_for_all:
                    answer = await inbox.next_msg(timeout=None)
                    if answer.headers and answer.headers.get("Status"):
                        break  # 503: no worker listens
                    for running in _answer_decoder.decode(answer.data):
                        found.append(running)
                        missing.discard(running.sequence)
        await inbox.unsubscribe()
    except nats.errors.Error as error:
        raise ServerUnavailableError(f"NATS: {error}") from error
    return found
