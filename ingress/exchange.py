"""One request with its open response stream: run the engine, end the stream, say how it ended.

The engine runs in :mod:`dialback.ingress.response`; this file writes what ends the stream and
classifies what came of it: the outcome, Dynamo's counters, our own. Source: overview section 3,
protocol sections 7.5 and 12.3.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dialback.errors import Cancelled, ProtocolError, PublishError, SerializationError
from dialback.ingress.answer import cancellation_text
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine
from dialback.ingress.request import ParsedRequest
from dialback.ingress.response import ResponseHooks, ResponseRun, StreamEnd, run_response
from dialback.metrics.names import ErrorType, PublishCause, PublishStage
from dialback.metrics.service import ServiceMetrics
from dialback.metrics.work_handler import WorkHandlerMetrics
from dialback.outcomes import (
    Delivery,
    Ending,
    Finished,
    Outcome,
    Revocation,
    Revoked,
    Superseded,
)
from dialback.transport.dynamo_errors import describe, error_item_of, refusal_of
from dialback.transport.items import encode_error_item, encode_final
from dialback.transport.response_stream import WorkerEvent
from dialback.transport.sender import ResponseSender

logger = logging.getLogger(__name__)

REFUSAL_WAIT: Final = 0.1
"""Seconds a redelivery waits for the reset of a spent subject (overview rule 5)."""
_NS: Final = 1_000_000_000

_UNWRITABLE: Final = frozenset({StreamEnd.KILLED, StreamEnd.LOST})
_OUTCOME_OF: Final = {
    StreamEnd.DONE: Outcome.COMPLETED,
    StreamEnd.STOPPED: Outcome.STOPPED,
    StreamEnd.REFUSED: Outcome.ENGINE_REFUSED,
    StreamEnd.FAILED: Outcome.ENGINE_FAILED,
    StreamEnd.SHUTDOWN: Outcome.INTERRUPTED,
    StreamEnd.CANCELLED: Outcome.CANCELLED,
}
_ERROR_TYPE_OF: Final = {
    PublishStage.RESPONSE: ErrorType.PUBLISH_RESPONSE,
    PublishStage.FINAL: ErrorType.PUBLISH_FINAL,
}
_TOLD: Final = frozenset(_OUTCOME_OF.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSettings:
    """How the ingress behaves.

    Attributes:
        stop_grace: Seconds an engine has to end after a stop or at shutdown.
        refusal_wait: Seconds a redelivery waits for a refused handshake.
        max_crashes: Workers that may die with a request; then it is poison.
    """

    stop_grace: float = 1.0
    refusal_wait: float = REFUSAL_WAIT
    max_crashes: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTools:
    """What every exchange of an ingress shares.

    Attributes:
        metrics: Dynamo's series.
        service: Our own series.
        settings: Grace periods.
        on_healthy: The health notifier.
    """

    metrics: WorkHandlerMetrics
    service: ServiceMetrics
    settings: IngressSettings
    on_healthy: Callable[[], None]


@dataclass(slots=True)
class Progress:
    """How far a request has got, for its ending.

    Attributes:
        started: Monotonic time of its entry.
        request_id: Its id, once it is read.
        handshaken: Whether the handshake is written: from then on an end is final.
        items: Items written.
        first_response: Seconds from entry to prologue.
    """

    started: float
    request_id: str = ""
    handshaken: bool = False
    items: int = 0
    first_response: float | None = None


class Exchange:
    """One request and its response stream, handshake written."""

    def __init__(
        self,
        delivery: Delivery,
        parsed: ParsedRequest,
        sender: ResponseSender,
        progress: Progress,
        *,
        tools: ExchangeTools,
    ) -> None:
        self._delivery = delivery
        self._parsed = parsed
        self._sender = sender
        self._progress = progress
        self._tools = tools
        self._metrics = tools.metrics

    async def respond(self, engine: Engine) -> Ending:
        """Run the engine and end the stream; return how the request ended.

        Raises:
            Exception: A fault of our own; the caller has been told, if that was possible.
        """
        settings = self._tools.settings
        if self._delivery.number > 1 and await self._sender.refused(settings.refusal_wait):
            return self._finished(Outcome.CLIENT_GONE, reason="the stream subject is spent")
        try:
            run = await run_response(
                engine,
                self._parsed.value,
                self._context(),
                self._sender,
                codec=self._parsed.call_home.codec,
                revocation=self._delivery.revocation,
                stop_grace=settings.stop_grace,
                hooks=self._hooks(),
            )
            self._progress.items = run.items
            return await self._conclude(run)
        except Exception as error:
            await self._confess(error)
            raise

    async def _conclude(self, run: ResponseRun) -> Ending:
        if run.end is StreamEnd.LEASE_LOST:
            return self._superseded(run.end)
        if run.end in _UNWRITABLE:
            return self._unwritable(run, PublishStage.RESPONSE)
        return await self._close(run)

    def _context(self) -> Context:
        deadline_ns = self._parsed.deadline_ns
        return Context(
            self._parsed.request_id,
            metadata=self._parsed.metadata,
            headers=self._delivery.headers,
            deadline=datetime.fromtimestamp(deadline_ns / _NS, UTC) if deadline_ns else None,
            delivery=self._delivery.number,
            lane=self._delivery.lane,
        )

    def _hooks(self) -> ResponseHooks:
        def accepted() -> None:
            seconds = time.monotonic() - self._progress.started
            self._progress.first_response = seconds
            self._metrics.observe_first_response(seconds)

        return ResponseHooks(
            accepted=accepted,
            item_written=self._metrics.add_response_bytes,
            item_sent=self._tools.on_healthy,
        )

    # --- the orderly end --------------------------------------------------------------

    async def _close(self, run: ResponseRun) -> Ending:
        """Write what ends the stream, and wait until it is out."""
        try:
            self._write_end(run)
            cut = await _unless_cut(self._sender.finish(), self._sender, self._delivery.revocation)
        except PublishError as error:
            run.end, run.error = StreamEnd.LOST, self._sender.lost or error
            return self._unwritable(run, PublishStage.FINAL)
        if cut is StreamEnd.LEASE_LOST:
            return self._superseded(cut)
        if cut is not None:
            run.end = cut
            return self._unwritable(run, PublishStage.FINAL)
        return self._closed(run)

    def _write_end(self, run: ResponseRun) -> None:
        if run.end is StreamEnd.REFUSED and run.error is not None:
            self._sender.write_refusal(refusal_of(run.error))
            return
        if not run.accepted:
            self._sender.write_prologue()  # stopped before the engine accepted
        if run.end is StreamEnd.SHUTDOWN:
            return  # no final: the caller sees an incomplete stream (overview section 4)
        if run.end is StreamEnd.CANCELLED:
            run.error = Cancelled(cancellation_text(self._delivery.revocation.detail))
        if run.end in {StreamEnd.FAILED, StreamEnd.CANCELLED} and run.error is not None:
            self._write_error_item(run.error)
        self._write_final()

    def _write_error_item(self, error: BaseException) -> None:
        body = encode_error_item(error_item_of(error), self._parsed.call_home.codec)
        self._metrics.add_response_bytes(len(body))
        self._sender.write_item(body)

    def _write_final(self) -> None:
        body = encode_final(self._parsed.call_home.codec)
        self._metrics.add_response_bytes(len(body))
        self._sender.write_final(body)

    def _closed(self, run: ResponseRun) -> Finished:
        outcome = _OUTCOME_OF[run.end]
        error_type = None
        match outcome:
            case Outcome.COMPLETED:
                self._tools.on_healthy()
            case Outcome.STOPPED:
                self._metrics.count_cancellation()
            case Outcome.ENGINE_REFUSED:
                error_type = ErrorType.GENERATE
            case Outcome.ENGINE_FAILED if isinstance(run.error, SerializationError):
                error_type = ErrorType.SERIALIZATION
            case _:
                pass
        if error_type is not None:
            self._metrics.count_error(error_type)
        if run.error is not None:
            reason = describe(run.error)
        else:
            reason = "" if outcome is Outcome.COMPLETED else run.end.value
        return self._finished(outcome, reason=reason, error_type=error_type)

    # --- the other ends ---------------------------------------------------------------

    def _unwritable(self, run: ResponseRun, stage: PublishStage) -> Finished:
        """Classify a stream that could not be written to its end (protocol section 12.3)."""
        if run.end is StreamEnd.KILLED:
            self._metrics.count_cancellation()
            self._metrics.count_error(ErrorType.PUBLISH_FINAL)
            return self._finished(
                Outcome.KILLED, reason=run.end.value, error_type=ErrorType.PUBLISH_FINAL
            )
        gone = isinstance(run.error, PublishError) and run.error.client_gone
        cause = PublishCause.CLIENT_DISCONNECT if gone else PublishCause.TRANSPORT_FAILURE
        self._metrics.count_error(_ERROR_TYPE_OF[stage])
        self._tools.service.count_publish_failure(stage, cause)
        if gone:
            self._metrics.count_cancellation()
        else:
            facts = {"request_id": self._parsed.request_id, "stage": stage.value}
            logger.error("answer could not be published", extra=facts | {"reason": str(run.error)})
        return self._finished(
            Outcome.CLIENT_GONE if gone else Outcome.NETWORK_FAILED,
            reason=str(run.error),
            error_type=_ERROR_TYPE_OF[stage],
        )

    async def _confess(self, error: Exception) -> None:
        """A fault of our own: end the stream with an error item, if it still can be."""
        with suppress(PublishError, ProtocolError):
            if self._progress.first_response is None:
                self._sender.write_prologue()
            self._write_error_item(error)
            self._write_final()
            await self._sender.finish()

    def _superseded(self, end: StreamEnd) -> Superseded:
        return Superseded(request_id=self._parsed.request_id, reason=end.value)

    def _finished(
        self, outcome: Outcome, *, reason: str, error_type: ErrorType | None = None
    ) -> Finished:
        return Finished(
            outcome=outcome,
            request_id=self._parsed.request_id,
            reason=reason,
            error_type=error_type,
            caller=self._sender.address,
            items=self._progress.items,
            response_bytes=self._sender.response_bytes,
            time_to_first_response=self._progress.first_response,
            dials=self._sender.dials,
            caller_told=outcome in _TOLD,
        )


async def _unless_cut(
    work: Awaitable[None], sender: ResponseSender, revocation: Revocation
) -> StreamEnd | None:
    """Await the writing of a stream's end; a kill or a lost lease cuts it short.

    Raises:
        PublishError: What ``work`` raises.
    """
    task = asyncio.ensure_future(work)
    cuts: list[StreamEnd] = []

    def cut(end: StreamEnd) -> None:
        cuts.append(end)
        task.cancel()

    def on_event(event: WorkerEvent) -> None:
        if event in (WorkerEvent.KILL, WorkerEvent.VIOLATION):
            cut(StreamEnd.KILLED)

    def on_revoked(reason: Revoked) -> None:
        if reason is Revoked.LEASE_LOST:
            cut(StreamEnd.LEASE_LOST)
        else:
            sender.end_linger()  # all is written; the process is about to end

    sender.on_event(on_event)
    revocation.on_revoked(on_revoked)
    try:
        await task
    except asyncio.CancelledError:
        if not cuts or not task.cancelled():
            task.cancel()
            raise
        return cuts[0]
    return None
