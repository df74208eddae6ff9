"""One request with its open response stream: run the engine, end the stream, say how it ended.

The engine runs in :mod:`dialback.ingress.response`; this file writes what ends the stream and
classifies what came of it: the outcome, Dynamo's counters, our own. Source: overview section 3,
protocol sections 7.5 and 12.3.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from dialback.errors import Cancelled, ProtocolError, PublishError, SerializationError
from dialback.ingress.answer import cancellation_text
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine
from dialback.ingress.request import ParsedRequest
from dialback.ingress.response import (
    TAKEN_AWAY,
    ResponseHooks,
    ResponseRun,
    StreamEnd,
    run_response,
)
from dialback.ingress.resumption import Replay, ReplayError
from dialback.ingress.revoked import unless_cut
from dialback.ingress.session import ExchangeTools, Progress, Session
from dialback.metrics.names import ErrorType, PublishCause, PublishStage
from dialback.outcomes import (
    Delivery,
    Ending,
    Finished,
    HandedBack,
    Outcome,
    Revoked,
    Superseded,
)
from dialback.transport.dynamo_errors import (
    describe,
    error_item_of,
    interrupted_error,
    refusal_of,
)
from dialback.transport.items import encode_error_item, encode_final
from dialback.transport.messages import DynamoError
from dialback.transport.sender import ResponseSender

logger = logging.getLogger(__name__)

LAST_LINGER: Final = 1.0
"""Seconds that the requester of a resumable stream has to close it when the worker shuts down:
without its close another worker must ask what it has."""
LONGEST_LINGER: Final = 3600.0
"""Seconds that it has otherwise, unless its deadline comes before."""
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
        session: Session | None = None,
    ) -> None:
        self._session = session
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
        redelivered = self._session is None and self._delivery.redelivered
        if redelivered and await self._sender.refused(settings.refusal_wait):
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
                resumption=self._session.resumption if self._session is not None else None,
            )
            self._progress.items, self._progress.response_bytes = run.items, run.response_bytes
            return await self._conclude(run)
        except Exception as error:
            await self._confess(error)
            raise
        finally:
            self._count_replayed()

    async def _conclude(self, run: ResponseRun) -> Ending:
        if run.end in TAKEN_AWAY:
            return self._taken_away(run.end)
        if run.end in _UNWRITABLE:
            stage = PublishStage.FINAL if run.complete else PublishStage.RESPONSE
            return self._unwritable(run, stage)
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
            resume_from=self._session.start.delivered if self._session is not None else 0,
            delivered=self._session.start.history if self._session is not None else None,
        )

    def _hooks(self) -> ResponseHooks:
        def accepted() -> None:
            seconds = time.monotonic() - self._progress.started
            self._progress.first_response = seconds
            self._metrics.observe_first_response(seconds)

        return ResponseHooks(
            accepted=accepted,
            first_item=self._first_item,
            item_sent=self._tools.on_healthy,
            response_bytes=self._metrics.response_bytes,
        )

    def _first_item(self) -> None:
        """On a resumed stream the first item ends the gap."""
        session = self._session
        if session is not None and session.start.delivered:
            self._tools.service.observe_handover(session.gap())

    # --- the orderly end --------------------------------------------------------------

    async def _close(self, run: ResponseRun) -> Ending:
        """Write what ends the stream, and wait until it is out."""
        try:
            self._write_end(run)
            if run.end is StreamEnd.HANDED_OVER:
                return await self._hand_over()
            if self._session is not None and self._session.resumption.able:
                self._delivery.revocation.on_handover_offered(self._end_linger)
            cut = await unless_cut(
                self._finish(), self._sender, self._delivery.revocation, self._end_linger
            )
        except PublishError as error:
            run.end, run.error = StreamEnd.LOST, self._sender.lost or error
            return self._unwritable(run, PublishStage.FINAL)
        if cut in TAKEN_AWAY:
            return self._taken_away(cut)
        if cut is not None:
            run.end = cut
            return self._unwritable(run, PublishStage.FINAL)
        if self._unproven(run):
            return self._handed_back("the requester did not close the stream", run)
        return self._closed(run)

    def _finish(self) -> Coroutine[Any, Any, None]:
        """Write the sentinel and wait for the requester's FIN.

        The requester of a resumable stream is waited for as long as the caller wants the stream:
        it may read slowly, and only its FIN proves that it has everything.
        """
        if self._session is None:
            return self._sender.finish()
        deadline_ns = self._parsed.deadline_ns
        left = (deadline_ns - time.time_ns()) / _NS if deadline_ns else math.inf
        return self._sender.finish(linger=max(LAST_LINGER, min(left, LONGEST_LINGER)))

    def _end_linger(self) -> None:
        """All is written, and the process is about to end."""
        seconds = 0.0 if self._session is None else LAST_LINGER
        asyncio.get_running_loop().call_later(seconds, self._sender.end_linger)

    def _unproven(self, run: ResponseRun) -> bool:
        """Whether the next dial must tell if the requester has everything.

        An engine that cannot resume could only break a stream whose last bytes are under way.
        """
        if self._session is None:
            return False
        if self._sender.left_early:
            return True
        if self._sender.peer_closed:
            return False
        shutdown = self._delivery.revocation.reason is Revoked.SHUTDOWN
        return not shutdown or self._session.resumption.able or not self._delivered(run)

    def _delivered(self, run: ResponseRun) -> int:
        """Return how many items the requester has, or will have."""
        before = self._session.start.delivered if self._session is not None else 0
        return before + run.items

    async def _hand_over(self) -> HandedBack:
        """Let another worker go on: no final, and no waiting for a caller that reads slowly."""
        with suppress(PublishError, TimeoutError):
            async with asyncio.timeout(LAST_LINGER):
                await self._sender.finish(linger=None)
        return HandedBack(request_id=self._parsed.request_id, reason=StreamEnd.HANDED_OVER.value)

    def _write_end(self, run: ResponseRun) -> None:
        if run.complete:
            return
        if run.end is StreamEnd.REFUSED and run.error is not None:
            self._sender.write_refusal(refusal_of(run.error))
            return
        if not run.accepted:
            self._sender.write_prologue()  # stopped before the engine accepted
        if run.end is StreamEnd.HANDED_OVER:
            return  # no final: another worker goes on (overview section 4)
        if run.end is StreamEnd.SHUTDOWN:
            if self._session is None:
                return  # no final: the caller sees an incomplete stream (overview section 4)
            why = "its worker shut down, and the engine cannot resume"
            self._write_error(interrupted_error(why))
        if run.end is StreamEnd.CANCELLED:
            run.error = Cancelled(cancellation_text(self._delivery.revocation.detail))
            self._write_error(error_item_of(run.error))
        if run.end is StreamEnd.FAILED and run.error is not None:
            self._write_failure(run.error)
        self._write_final()

    def _write_failure(self, error: BaseException) -> None:
        """Write the engine's error, unless the requester has it from an earlier worker."""
        item = _item_of(error)
        replay = self._session.resumption.replay if self._session is not None else Replay()
        if replay.pending and not isinstance(error, ReplayError):
            try:
                replay.drop(encode_error_item(item, self._parsed.call_home.codec))
                replay.check_complete()
            except ReplayError as differs:
                item = _item_of(differs)
            else:
                return
        self._write_error(item)

    def _write_error(self, error: DynamoError) -> None:
        body = encode_error_item(error, self._parsed.call_home.codec)
        self._count(body)
        self._sender.write_item(body)

    def _write_final(self) -> None:
        body = encode_final(self._parsed.call_home.codec)
        self._count(body)
        self._sender.write_final(body)

    def _count(self, body: bytes) -> None:
        self._metrics.response_bytes.value += len(body)
        self._progress.response_bytes += len(body)

    def _closed(self, run: ResponseRun) -> Finished:
        outcome = _OUTCOME_OF[run.end]
        error_type = None
        match outcome:
            case Outcome.COMPLETED if self._tools.on_healthy is not None:
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

    def _unwritable(self, run: ResponseRun, stage: PublishStage) -> Ending:
        """Classify a stream that could not be written to its end (protocol section 12.3)."""
        if run.end is StreamEnd.KILLED:
            self._metrics.count_cancellation()
            self._metrics.count_error(ErrorType.PUBLISH_FINAL)
            return self._finished(
                Outcome.KILLED, reason=run.end.value, error_type=ErrorType.PUBLISH_FINAL
            )
        # On a resumable stream only stop and kill are the caller's will (overview section 4).
        closed = isinstance(run.error, PublishError) and run.error.client_gone
        gone = closed and self._session is None
        if closed and self._sender.fresh and run.items == 0:
            # A caller that has left resets it as well: the next dial finds out, and counts.
            return self._handed_back(f"connection lost: {run.error}", run)
        cause = PublishCause.CLIENT_DISCONNECT if gone else PublishCause.TRANSPORT_FAILURE
        self._metrics.count_error(_ERROR_TYPE_OF[stage])
        self._tools.service.count_publish_failure(stage, cause)
        if self._session is not None:
            return self._handed_back(f"connection lost: {run.error}", run)
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
            self._write_error(error_item_of(error))
            self._write_final()
            await self._sender.finish()

    def _handed_back(self, reason: str, run: ResponseRun) -> HandedBack:
        """Let the next dial find out whether somebody still wants the stream."""
        return HandedBack(
            request_id=self._parsed.request_id,
            reason=reason,
            delay=random.uniform(0.1, 0.5),  # noqa: S311 -- not a secret
            fruitless=run.items == 0,
        )

    def _count_replayed(self) -> None:
        if self._session is not None and (dropped := self._session.resumption.replay.dropped):
            self._tools.service.count_replayed(dropped)

    def _taken_away(self, end: StreamEnd) -> HandedBack | Superseded:
        if end is StreamEnd.NOT_FIRST:  # the next delivery asks what the requester has
            return HandedBack(request_id=self._parsed.request_id, reason=end.value)
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
            response_bytes=self._progress.response_bytes,
            time_to_first_response=self._progress.first_response,
            dials=self._sender.dials,
            caller_told=outcome in _TOLD,
        )


def _item_of(error: BaseException) -> DynamoError:
    if isinstance(error, ReplayError):
        return interrupted_error(error.why)
    return error_item_of(error)
