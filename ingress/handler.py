"""One delivery from payload to ending, in the seed's order.

count, parse, transit time, dial and handshake, engine, prologue, items, final, sentinel, the
requester's FIN. The in-flight gauge and the duration are released on every way out. What an
ending means for the message is the queue's business (overview, sections 3 and 8).
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from dialback.errors import (
    CallHomeForbiddenError,
    DeserializationError,
    DialError,
    InvalidArgument,
    Unknown,
)
from dialback.ingress.agreement import agree
from dialback.ingress.answer import Answerer, cancellation, expiry, need_not_ask, offer_of
from dialback.ingress.engine import Engine
from dialback.ingress.exchange import Exchange
from dialback.ingress.request import (
    CallHome,
    Parse,
    ParsedRequest,
    Rejection,
    brief,
    parse_unary,
    request_id_for,
)
from dialback.ingress.revoked import handed_back_or_superseded, unless_revoked
from dialback.ingress.session import ExchangeTools, IngressSettings, Progress, Session
from dialback.metrics.names import ErrorType
from dialback.metrics.service import ServiceMetrics
from dialback.metrics.work_handler import WorkHandlerMetrics
from dialback.outcomes import Delivery, Ending, Finished, HandedBack, Outcome, Revoked
from dialback.transport.dial import Dialer
from dialback.transport.dynamo_errors import backend_error, describe
from dialback.transport.messages import DynamoError
from dialback.transport.sender import ResponseSender

logger = logging.getLogger(__name__)

_NS: Final = 1_000_000_000


class Ingress:
    """Serves deliveries with one engine. :meth:`handle` is what the queue calls."""

    def __init__(
        self,
        engine: Engine,
        dialer: Dialer,
        *,
        metrics: WorkHandlerMetrics,
        service: ServiceMetrics,
        settings: IngressSettings | None = None,
        parse: Parse = parse_unary,
        on_healthy: Callable[[], None] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Wire an ingress.

        Args:
            engine: The user's engine.
            dialer: Opens response streams.
            metrics: Dynamo's series.
            service: Our own series.
            settings: Grace periods.
            parse: The dispatch seam.
            on_healthy: The seed's health notifier: called after each good item that was
                sent, and at a clean end without any error item.
            now_ns: Wall clock, Unix nanoseconds.
        """
        self._engine = engine
        self._dialer = dialer
        self._metrics = metrics
        self._parse = parse
        self._now_ns = now_ns
        self._tools = ExchangeTools(
            metrics=metrics,
            service=service,
            settings=settings or IngressSettings(),
            on_healthy=on_healthy,
        )

    def close(self) -> None:
        """Close the connections that are kept between two streams."""
        self._dialer.close()

    async def handle(self, delivery: Delivery) -> Ending:
        """Serve one delivery; raises nothing but ``CancelledError``."""
        self._metrics.request_began(len(delivery.payload))
        progress = Progress(time.monotonic())
        try:
            return await self._serve(delivery, progress)
        except Exception as error:
            logger.exception(
                "fault in dialback itself; please report it",
                extra={"sequence": delivery.sequence, "subject": delivery.subject},
            )
            return _own_fault(delivery, progress, error)
        finally:
            self._metrics.request_ended(time.monotonic() - progress.started)

    async def _serve(self, delivery: Delivery, progress: Progress) -> Ending:
        parsed = self._parse(delivery)
        if isinstance(parsed, ParsedRequest):
            parsed = self._convert(parsed)
        if isinstance(parsed, Rejection):
            return await self._reject(delivery, parsed)
        progress.request_id = parsed.request_id
        if parsed.sent_ns is not None:
            self._metrics.observe_transit((self._now_ns() - parsed.sent_ns) / _NS)
        given_up = _cancelled(delivery) or self._given_up(delivery, parsed)
        if given_up is not None:
            return await self._give_up(delivery, parsed, *given_up)
        sender = await self._dial(delivery, parsed)
        if not isinstance(sender, ResponseSender):
            if isinstance(sender, HandedBack) and (cancelled := _cancelled(delivery)):
                return await self._give_up(delivery, parsed, *cancelled)
            return sender
        try:
            session: Session | None = None
            if parsed.call_home.resumable:
                agreed = await agree(
                    delivery,
                    parsed,
                    sender,
                    progress,
                    engine=self._engine,
                    tools=self._tools,
                    now_ns=self._now_ns(),
                )
                if not isinstance(agreed, Session):
                    return agreed
                session = agreed
            progress.handshaken = True
            exchange = Exchange(
                delivery, parsed, sender, progress, tools=self._tools, session=session
            )
            return await exchange.respond(self._engine)
        finally:
            sender.abort()  # nothing to do after an orderly end

    def _convert(self, parsed: ParsedRequest) -> ParsedRequest | Rejection:
        """Give the engine the type it asks for."""
        try:
            value = self._engine.convert(parsed.value)
            return parsed if value is parsed.value else replace(parsed, value=value)
        except DeserializationError as error:
            return Rejection(
                outcome=Outcome.INVALID,
                error_type=ErrorType.DESERIALIZATION,
                reason=brief(error),
                request_id=parsed.request_id,
                call_home=parsed.call_home,
            )

    # --- answers without an engine ----------------------------------------------------

    async def _reject(self, delivery: Delivery, rejection: Rejection) -> Finished:
        self._metrics.count_error(rejection.error_type)
        error = backend_error(InvalidArgument, rejection.reason)
        told = await self._tell(delivery, rejection.call_home, error)
        return Finished(
            outcome=rejection.outcome,
            request_id=rejection.request_id,
            reason=rejection.reason,
            error_type=rejection.error_type,
            caller=str(rejection.call_home.address) if rejection.call_home else "",
            caller_told=told,
        )

    async def _tell(
        self, delivery: Delivery, call_home: CallHome | None, error: DynamoError
    ) -> bool:
        # Whoever had it before may have spent its subject.
        wait = self._tools.settings.refusal_wait if delivery.redelivered else 0.0
        return await Answerer(self._dialer, wait).answer(
            call_home, error, offer=offer_of(delivery, unable=True), revocation=delivery.revocation
        )

    def _given_up(
        self, delivery: Delivery, parsed: ParsedRequest
    ) -> tuple[Outcome, DynamoError] | None:
        """Say why a request that could be served is not.

        On a resumable stream the requester decides what it still waits for, and how many workers
        were lost: see :func:`~dialback.ingress.resumption.plan`.
        """
        resumable = parsed.call_home.resumable
        now_ns = self._now_ns()
        if parsed.past_deadline(now_ns) if resumable else parsed.expired(now_ns):
            return Outcome.EXPIRED, expiry()
        if not resumable and delivery.crashes >= self._tools.settings.max_crashes:
            workers = "worker" if delivery.crashes == 1 else "workers"
            reason = (
                f"given up: {delivery.crashes} {workers} died while they had it"
                f" (delivery {delivery.number})"
            )
            return Outcome.POISON, backend_error(Unknown, reason)
        return None

    async def _give_up(
        self, delivery: Delivery, parsed: ParsedRequest, outcome: Outcome, error: DynamoError
    ) -> Finished:
        told = await self._tell(delivery, parsed.call_home, error)
        return Finished(
            outcome=outcome,
            request_id=parsed.request_id,
            reason=error.message,
            caller=str(parsed.call_home.address),
            caller_told=told,
        )

    # --- the dial ---------------------------------------------------------------------

    async def _dial(self, delivery: Delivery, parsed: ParsedRequest) -> ResponseSender | Ending:
        home = parsed.call_home
        offer = None
        if home.resumable:
            fresh = need_not_ask(delivery, expired=parsed.expired(self._now_ns()))
            offer = offer_of(
                delivery,
                unable=self._engine.resume is None,
                fresh=fresh,
                # A redelivery's requester may be gone, as only a dial can tell.
                reuse=fresh and home.reuse and self._dialer.keeps,
            )
            if offer.reuse and delivery.revocation.reason is None:
                # It waits for nothing, so nothing has to be able to end its wait.
                sender = self._dialer.reuse(home.address, home.subject, offer)
                if sender is not None:
                    return sender
        left = self._left(parsed)
        try:
            sender = await unless_revoked(
                self._dialer.dial(home.address, home.subject, total_timeout=left, offer=offer),
                delivery.revocation,
            )
        except CallHomeForbiddenError as error:
            return self._undialled(Outcome.UNSUPPORTED, parsed, str(error), dials=1)
        except DialError as error:
            outcome = Outcome.REQUESTER_GONE if error.gone else Outcome.REQUESTER_UNREACHABLE
            return self._undialled(outcome, parsed, str(error), dials=error.attempts)
        if sender is not None:
            return sender
        return handed_back_or_superseded(delivery, parsed.request_id)

    def _left(self, parsed: ParsedRequest) -> float | None:
        start_by = None if parsed.call_home.resumable else parsed.start_by_ns
        limits = [ns for ns in (start_by, parsed.deadline_ns) if ns is not None]
        return max(0.1, (min(limits) - self._now_ns()) / _NS) if limits else None

    def _undialled(
        self, outcome: Outcome, parsed: ParsedRequest, reason: str, *, dials: int
    ) -> Finished:
        self._metrics.count_error(ErrorType.RESPONSE_STREAM)
        return Finished(
            outcome=outcome,
            request_id=parsed.request_id,
            reason=reason,
            error_type=ErrorType.RESPONSE_STREAM,
            caller=str(parsed.call_home.address),
            dials=dials,
        )


def _cancelled(delivery: Delivery) -> tuple[Outcome, DynamoError] | None:
    """Say that an operator cancelled the request, if that is so."""
    if delivery.revocation.reason is not Revoked.CANCELLED:
        return None
    return Outcome.CANCELLED, cancellation(delivery.revocation.detail)


def _own_fault(delivery: Delivery, progress: Progress, error: Exception) -> Finished:
    """A fault of our own: retried before the handshake, final after it (overview section 3)."""
    outcome = Outcome.ENGINE_FAILED if progress.handshaken else Outcome.REQUESTER_UNREACHABLE
    return Finished(
        outcome=outcome,
        request_id=progress.request_id or request_id_for(delivery),
        reason=f"fault in dialback: {describe(error)}",
        items=progress.items,
    )
