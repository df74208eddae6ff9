"""The consumer: messages in, endings out. Slots, leases, settling, drain.

Pulls for free slots only, keeps each delivery's lease, calls ``handle`` (the ingress) in a
task of its own, carries out what :mod:`dialback.queue.policy` decides, and writes the one log
line of each finished request. Source: overview sections 3 and 8.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from dialback.errors import QueueError
from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import (
    Delivery,
    DeliveryEnd,
    Ending,
    Finished,
    Handle,
    Outcome,
    Revoked,
)
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters
from dialback.queue.delivery import ACK, TERM, DeliveryInfo, LeaseExpiredError, Settler, nak_body
from dialback.queue.lane_repair import Restore
from dialback.queue.lease import Lease, LeaseKeeper
from dialback.queue.policy import (
    Ack,
    DeadLetter,
    Disposition,
    Leave,
    Nak,
    RetryPolicy,
    disposition_for,
    retry_delay,
)
from dialback.queue.puller import Puller, PullEvents, PullSettings

logger = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_JITTER: Final = 0.2


@dataclass(slots=True)
class _Work:
    """One delivery that is being worked on."""

    message: Msg
    delivery: Delivery
    lease: Lease
    started: float = field(default_factory=time.monotonic)

    def expired(self) -> bool:
        """Whether another worker may have the message by now."""
        return self.lease.expired(time.monotonic())


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What a drain left.

    Attributes:
        interrupted: Requests that were ended before their time.
        abandoned: Deliveries that were left to their lease.
    """

    interrupted: int = 0
    abandoned: int = 0


class Consumer:
    """Consumes one endpoint's queue with a number of slots."""

    def __init__(
        self,
        client: Client,
        *,
        stream: str,
        lanes: Sequence[str],
        slots: int,
        handle: Handle,
        leases: LeaseKeeper,
        settler: Settler,
        dead_letters: DeadLetters,
        metrics: ServiceMetrics,
        worker: str,
        policy: RetryPolicy | None = None,
        pull: PullSettings | None = None,
        restore: Restore | None = None,
    ) -> None:
        self._slots = slots
        self._handle = handle
        self._leases = leases
        self._settler = settler
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._worker = worker
        self._policy = policy or RetryPolicy()
        self._tasks: dict[asyncio.Task[None], _Work] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._interrupted = 0
        self.puller = Puller(
            client,
            stream,
            lanes,
            free=lambda: self._slots - len(self._tasks),
            accept=self._accept,
            settings=pull,
            events=PullEvents(
                pulled=metrics.pulled,
                failed=metrics.count_pull_error,
                handed_back=lambda: metrics.count_delivery_end(DeliveryEnd.HANDED_BACK),
            ),
            restore=restore,
        )

    @property
    def in_flight(self) -> int:
        """Deliveries being worked on."""
        return len(self._tasks)

    async def run(self) -> None:
        """Pull and work until the puller is stopped; then see :meth:`drain`."""
        await self.puller.run()

    # --- one delivery -----------------------------------------------------------------

    def _accept(self, message: Msg, info: DeliveryInfo, asked: float) -> bool:
        """Take a message into a free slot, or leave it to the worker that has it by now."""
        if self._leases.came_late(asked):
            self._metrics.count_delivery_end(DeliveryEnd.SUPERSEDED)
            logger.warning(
                "message dropped: the event loop stood still, another worker may have it",
                extra={"lane": info.consumer, "seq": info.sequence, "delivery": info.number},
            )
            self.puller.start_over()  # what else those pulls bring is as old
            return True  # no NAK: that would take it from that worker
        if len(self._tasks) >= self._slots:
            return False
        delivery = Delivery(
            payload=message.data,
            headers=dict(message.headers or {}),
            subject=message.subject,
            lane=info.consumer,
            stream=info.stream,
            sequence=info.sequence,
            number=info.number,
            published_ns=info.published_ns,
        )
        lease = self._leases.add(
            message.reply, lambda: delivery.revocation.set(Revoked.LEASE_LOST), asked=asked
        )
        work = _Work(message, delivery, lease)
        task = asyncio.create_task(self._work(work), name=f"delivery-{info.sequence}")
        self._tasks[task] = work
        self._idle.clear()
        self._metrics.set_slots_busy(len(self._tasks))
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._metrics.set_slots_busy(len(self._tasks))
        if not self._tasks:
            self._idle.set()
        self.puller.slots_changed()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a delivery's task failed", exc_info=error)

    async def _work(self, work: _Work) -> None:
        if work.delivery.number == 1:
            waited = time.time_ns() - work.delivery.published_ns
            self._metrics.observe_queue_wait(max(0.0, waited / _NS))
        try:
            ending = await self._handle(work.delivery)
            # The outcome is known: a cancellation must not stop us from saying so.
            await asyncio.shield(self._settle(work, ending))
        finally:
            self._leases.remove(work.lease)

    # --- settling ---------------------------------------------------------------------

    async def _settle(self, work: _Work, ending: Ending) -> None:
        disposition = disposition_for(
            ending,
            number=work.delivery.number,
            policy=self._policy,
            jitter=lambda: random.uniform(1 - _JITTER, 1 + _JITTER),  # noqa: S311
        )
        if work.expired():
            disposition = Leave()
        try:
            end = await self._carry_out(work, ending, disposition)
        except LeaseExpiredError:
            end = DeliveryEnd.SUPERSEDED
        except QueueError as error:
            self._metrics.count_ack_unconfirmed()
            logger.error(  # noqa: TRY400 -- the reason says it, a traceback does not
                "settling was never confirmed; if the message is still there, it comes again",
                extra=self._facts(work, ending) | {"reason": str(error)},
            )
            end = DeliveryEnd.UNCONFIRMED
        self._metrics.count_delivery_end(end)
        if end is DeliveryEnd.SETTLED and isinstance(ending, Finished):
            self._count(ending, disposition)
        self._log(work, ending, end, disposition)

    async def _carry_out(
        self, work: _Work, ending: Ending, disposition: Disposition
    ) -> DeliveryEnd:
        match disposition:
            case Leave():
                return DeliveryEnd.SUPERSEDED
            case Nak(delay=delay, retry=retry):
                await self._answer(work, nak_body(delay))
                return DeliveryEnd.RETRIED if retry else DeliveryEnd.HANDED_BACK
            case Ack():
                await self._answer(work, ACK)
                return DeliveryEnd.SETTLED
            case DeadLetter():
                return await self._bury(work, ending)

    async def _bury(self, work: _Work, ending: Ending) -> DeliveryEnd:
        """Write the dead letter, then terminate. Without the letter the message stays."""
        assert isinstance(ending, Finished)  # noqa: S101 -- the policy's
        record = DeadLetterRecord.of(ending, work.delivery, self._worker)
        try:
            await self._dead_letters.write(record)
        except QueueError as error:
            logger.error(  # noqa: TRY400 -- as above
                "dead letter could not be stored; trying again later",
                extra=self._facts(work, ending) | {"reason": str(error)},
            )
            delay = retry_delay(work.delivery.number, self._policy)
            await self._answer(work, nak_body(delay))
            return DeliveryEnd.RETRIED
        await self._answer(work, TERM + b" " + ending.outcome.encode())
        return DeliveryEnd.SETTLED

    async def _answer(self, work: _Work, body: bytes) -> None:
        await self._settler.confirm(work.message, body, lost=work.expired)

    def _count(self, ending: Finished, disposition: Disposition) -> None:
        self._metrics.count_outcome(ending.outcome)
        if isinstance(disposition, DeadLetter):
            self._metrics.count_dead_letter(ending.outcome)
        if ending.outcome is Outcome.INTERRUPTED:
            self._interrupted += 1

    # --- the log ----------------------------------------------------------------------

    def _log(self, work: _Work, ending: Ending, end: DeliveryEnd, disposition: Disposition) -> None:
        """One line at INFO for each finished request; other delivery ends have their own."""
        facts = self._facts(work, ending)
        if isinstance(ending, Finished) and end is DeliveryEnd.SETTLED:
            facts["dead_letter"] = isinstance(disposition, DeadLetter)
            logger.info("request finished", extra=facts)
        elif end is DeliveryEnd.RETRIED and isinstance(disposition, Nak):
            facts["retry_in"] = round(disposition.delay, 1)
            logger.info("delivery ended, the request will be retried", extra=facts)
        else:
            logger.info("delivery ended", extra=facts | {"end": end})

    def _facts(self, work: _Work, ending: Ending) -> dict[str, object]:
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
                "outcome": ending.outcome.value,
                "caller": ending.caller,
                "items": ending.items,
                "bytes": ending.response_bytes,
                "dials": ending.dials,
                "caller_told": ending.caller_told,
                "ttfr_ms": None if ttfr is None else round(ttfr * 1000, 1),
            }
        return facts

    # --- the end ----------------------------------------------------------------------

    def revoke_all(self) -> None:
        """End what runs: no final, the caller sees an incomplete stream."""
        for work in list(self._tasks.values()):
            work.delivery.revocation.set(Revoked.SHUTDOWN)

    async def drain(self, budget: float, *, reserve: float, hurry: asyncio.Event) -> Drained:
        """Finish what runs within ``budget`` seconds; leases are renewed all the while.

        Args:
            budget: Seconds for everything.
            reserve: Part of it, in seconds, kept for ending what has not finished by then.
            hurry: Set when the operator wants no more waiting.
        """
        for work in list(self._tasks.values()):
            work.delivery.revocation.offer_handover()
        loop = asyncio.get_running_loop()
        end = loop.time() + budget
        await self._idle_within(end - reserve - loop.time(), hurry)
        if self._tasks:
            logger.warning("ending what still runs", extra={"running": len(self._tasks)})
            self.revoke_all()
            await self._idle_within(end - loop.time(), None)
        abandoned = len(self._tasks)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return Drained(interrupted=self._interrupted, abandoned=abandoned)

    async def _idle_within(self, seconds: float, hurry: asyncio.Event | None) -> None:
        waits = [asyncio.ensure_future(self._idle.wait())]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waits, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
