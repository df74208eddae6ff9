"""Settling: what the policy decided about a delivery is carried out, noted, counted and logged.

Each finished request is counted and logged once, by whoever has its settling confirmed. An
outcome that is known but whose settling is not confirmed goes into a note instead; the worker
that gets the message again finds it there, removes the message and counts it.

Source: overview sections 3 and 8.
"""

import logging
import random
import time
from collections.abc import Awaitable
from typing import Final

from dialback.errors import QueueError
from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import DeliveryEnd, Ending, Finished, Outcome, Revoked
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters
from dialback.queue.delivery import (
    ACK,
    NAK,
    TERM,
    DeliveryInfo,
    LeaseExpiredError,
    Settler,
    nak_body,
)
from dialback.queue.note import Note
from dialback.queue.notes import LateNotes, Notes
from dialback.queue.policy import (
    Ack,
    DeadLetter,
    Disposition,
    Leave,
    Nak,
    RetryPolicy,
    disposition_for,
    retry_delay,
    seconds_left,
)
from dialback.queue.work import Phase, Work, key_of
from dialback.transport.request_headers import REQUEST_ID_HEADER

logger = logging.getLogger(__name__)

_JITTER: Final = 0.2
_FOUND: Final = "found finished: an earlier delivery ended it, but its settling was not confirmed"


class Settling:
    """Ends deliveries of one consumer.

    Attributes:
        interrupted: Requests that this worker's shutdown interrupted.
    """

    def __init__(
        self,
        *,
        settler: Settler,
        dead_letters: DeadLetters,
        notes: Notes,
        metrics: ServiceMetrics,
        worker: str,
        policy: RetryPolicy,
    ) -> None:
        self._settler = settler
        self._dead_letters = dead_letters
        self._notes = notes
        self._late = LateNotes(notes)
        self._metrics = metrics
        self._worker = worker
        self._policy = policy
        self.interrupted = 0

    async def settle(self, work: Work, ending: Ending) -> None:
        """Do with the message what its delivery's ending asks for."""
        disposition = disposition_for(
            ending,
            attempts=work.delivery.attempts,
            left=seconds_left(work.delivery.headers, time.time_ns()),
            policy=self._policy,
            jitter=lambda: random.uniform(1 - _JITTER, 1 + _JITTER),  # noqa: S311
            hand_backs=len(work.noted.note.handed_back),
        )
        if isinstance(disposition, Ack):
            work.phase = Phase.REMOVING
        await self._end(work, ending, disposition, self._carry_out(work, ending, disposition))

    async def settle_found(self, work: Work, outcome: Outcome) -> None:
        """Remove a message whose request has ended already."""
        delivery = work.delivery
        named = delivery.headers.get(REQUEST_ID_HEADER)
        ending = Finished(
            outcome=outcome,
            request_id=named or f"seq-{delivery.sequence}-{delivery.published_ns}",
            reason=_FOUND,
        )
        final = disposition_for(
            ending,
            attempts=self._policy.max_attempts,
            left=None,
            policy=self._policy,
            jitter=lambda: 1.0,
        )
        work.phase = Phase.REMOVING
        await self._end(work, ending, final, self._remove(work, ACK))

    async def hand_back(self, work: Work) -> None:
        """Give a message back that was not worked on: note, then NAK.

        Raises:
            LeaseExpiredError: If another worker may have it by now.
            QueueError: If the server did not confirm it; it comes again when its lease ends.
        """
        note = Note(handed_back=frozenset({work.info.number}))
        try:
            await self._notes.write(key_of(work.info), note, lost=work.expired)
            await self._settler.confirm(work, NAK, lost=work.expired)
        except LeaseExpiredError:
            self.superseded(work.info)
            raise
        except QueueError:
            self._metrics.count_ack_unconfirmed()
            self._metrics.count_delivery_end(DeliveryEnd.UNCONFIRMED)
            raise

    def superseded(self, info: DeliveryInfo) -> None:
        """Count and note a delivery that another worker may have by now."""
        self._metrics.count_delivery_end(DeliveryEnd.SUPERSEDED)
        self._late.start(key_of(info), Note(superseded=frozenset({info.number})))

    async def close(self, within: float) -> None:
        """Wait at most ``within`` seconds for notes that are still being written."""
        await self._late.close(within)

    # --- one delivery -----------------------------------------------------------------

    async def _end(
        self,
        work: Work,
        ending: Ending,
        disposition: Disposition,
        carried_out: Awaitable[DeliveryEnd],
    ) -> None:
        """End a delivery: carry it out, note what was not confirmed, count and log."""
        try:
            end = await carried_out
        except LeaseExpiredError:
            end = DeliveryEnd.SUPERSEDED
        except QueueError as error:
            self._metrics.count_ack_unconfirmed()
            logger.error(  # noqa: TRY400 -- the reason says it, a traceback does not
                "settling was never confirmed; if the message is still there, it comes again",
                extra=_facts(work, ending) | {"reason": str(error)},
            )
            end = DeliveryEnd.UNCONFIRMED
        removable, work.phase = work.phase is Phase.REMOVING, Phase.OVER
        self._metrics.count_delivery_end(end)
        if end is DeliveryEnd.SETTLED and isinstance(ending, Finished):
            self._count(work, ending, disposition)
        elif end in (DeliveryEnd.SUPERSEDED, DeliveryEnd.UNCONFIRMED):
            self._late.start(key_of(work.info), _late_note(work, ending, removable=removable))
        _log(work, ending, end, disposition)

    async def _carry_out(self, work: Work, ending: Ending, disposition: Disposition) -> DeliveryEnd:
        if work.expired():
            return DeliveryEnd.SUPERSEDED
        match disposition:
            case Leave():
                return DeliveryEnd.SUPERSEDED
            case Nak(delay=delay, retry=True):
                note = Note(retried=frozenset({work.delivery.number}))
                await self._give_back(work, delay, note)
                return DeliveryEnd.RETRIED
            case Nak(delay=delay):
                note = Note(handed_back=frozenset({work.delivery.number}))
                await self._give_back(work, delay, note)
                return DeliveryEnd.HANDED_BACK
            case Ack():
                return await self._remove(work, ACK)
            case DeadLetter():
                return await self._bury(work, ending)

    async def _bury(self, work: Work, ending: Ending) -> DeliveryEnd:
        """Write the dead letter, then terminate. Without the letter the message stays."""
        assert isinstance(ending, Finished)  # noqa: S101 -- the policy's
        record = DeadLetterRecord.of(ending, work.delivery, self._worker)
        try:
            await self._dead_letters.write(record)
        except QueueError as error:
            logger.error(  # noqa: TRY400 -- as above
                "dead letter could not be stored; trying again later",
                extra=_facts(work, ending) | {"reason": str(error)},
            )
            number = work.delivery.number
            delay = retry_delay(number, self._policy)
            await self._give_back(work, delay, Note(handed_back=frozenset({number})))
            return DeliveryEnd.RETRIED
        work.phase = Phase.REMOVING
        return await self._remove(work, TERM + b" " + ending.outcome.encode())

    async def _remove(self, work: Work, body: bytes) -> DeliveryEnd:
        await self._settler.confirm(work, body, lost=work.expired)
        return DeliveryEnd.SETTLED

    async def _give_back(self, work: Work, delay: float, note: Note) -> None:
        """Note how the delivery ended, then NAK: the next worker reads the note at once."""
        work.phase = Phase.RETURNING
        note = note.merged(Note(superseded=work.earlier))
        await self._notes.write(key_of(work.info), note, base=work.noted, lost=work.expired)
        await self._settler.confirm(work, nak_body(delay), lost=work.expired)

    def _count(self, work: Work, ending: Finished, disposition: Disposition) -> None:
        self._metrics.count_outcome(ending.outcome)
        if isinstance(disposition, DeadLetter):
            self._metrics.count_dead_letter(ending.outcome)
        shut_down = work.delivery.revocation.reason is Revoked.SHUTDOWN
        if ending.outcome is Outcome.INTERRUPTED and shut_down:
            self.interrupted += 1


def _late_note(work: Work, ending: Ending, *, removable: bool) -> Note:
    """Return what the next worker should know of a delivery that was not settled."""
    if isinstance(ending, Finished) and removable:
        return Note(finished=ending.outcome)
    return Note(superseded=work.earlier | {work.delivery.number})


def _log(work: Work, ending: Ending, end: DeliveryEnd, disposition: Disposition) -> None:
    """One line at INFO for each finished request; other delivery ends have their own."""
    if not logger.isEnabledFor(logging.INFO):
        return  # the facts cost more than all other counting
    facts = _facts(work, ending)
    if isinstance(ending, Finished) and end is DeliveryEnd.SETTLED:
        facts["dead_letter"] = isinstance(disposition, DeadLetter)
        logger.info("request finished", extra=facts)
    elif end is DeliveryEnd.RETRIED and isinstance(disposition, Nak):
        facts["retry_in"] = round(disposition.delay, 1)
        logger.info("delivery ended, the request will be retried", extra=facts)
    else:
        logger.info("delivery ended", extra=facts | {"end": end})


def _facts(work: Work, ending: Ending) -> dict[str, object]:
    delivery = work.delivery
    facts: dict[str, object] = {
        "request_id": ending.request_id,
        "lane": delivery.lane,
        "seq": delivery.sequence,
        "delivery": delivery.number,
        "duration_ms": round((time.monotonic() - work.started) * 1000, 1),
    }
    if ending.reason:
        facts["reason"] = ending.reason
    if isinstance(ending, Finished):
        ttfr = ending.time_to_first_response
        facts |= {
            "outcome": str(ending.outcome),
            "caller": ending.caller,
            "items": ending.items,
            "bytes": ending.response_bytes,
            "dials": ending.dials,
            "caller_told": ending.caller_told,
            "ttfr_ms": None if ttfr is None else round(ttfr * 1000, 1),
        }
    return facts
