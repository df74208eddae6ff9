"""The consumer: messages in, endings out. Slots, leases, drain.

Pulls for free slots only, keeps each delivery's lease, calls ``handle`` (the ingress) in a
task of its own, and has its ending settled. Source: overview sections 3 and 8.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace
from nats.aio.client import Client
from nats.aio.msg import Msg

from dialback.metrics.names import PullErrorKind
from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import Delivery, DeliveryEnd, Handle
from dialback.queue.api import JetStreamApi
from dialback.queue.dead_letter import DeadLetters
from dialback.queue.delivery import DeliveryInfo, Settler
from dialback.queue.draining import Draining
from dialback.queue.epochs import Epochs
from dialback.queue.lane_repair import Restore
from dialback.queue.lanes import LaneSlots
from dialback.queue.lease import LeaseKeeper
from dialback.queue.notes import Notes
from dialback.queue.policy import RetryPolicy
from dialback.queue.pull_settings import PullEvents, PullSettings
from dialback.queue.puller import Puller
from dialback.queue.settling import Settling
from dialback.queue.work import InHand, Phase, Work, key_of

logger = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_SKEW_NS: Final = 1_000_000_000  # between a worker's clock and the server's
_LAST_NOTES: Final = 2.0  # seconds of a drain for notes that are still being written


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
        reserved: Mapping[str, int] | None = None,
        handle: Handle,
        leases: LeaseKeeper,
        settler: Settler,
        dead_letters: DeadLetters,
        notes: Notes,
        epochs: Epochs,
        metrics: ServiceMetrics,
        worker: str,
        policy: RetryPolicy | None = None,
        pull: PullSettings | None = None,
        restore: Restore | None = None,
    ) -> None:
        self._slots = LaneSlots(slots, reserved)
        self._handle = handle
        self._leases = leases
        self._notes = notes
        self._epochs = epochs
        self._metrics = metrics
        self._settling = Settling(
            settler=settler,
            dead_letters=dead_letters,
            notes=notes,
            metrics=metrics,
            worker=worker,
            policy=policy or RetryPolicy(),
        )
        self._tasks: dict[asyncio.Task[None], Work] = {}
        self._in_hand = InHand()
        self._reconnected_ns = -_SKEW_NS
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = Draining(
            JetStreamApi(client),
            stream,
            self._tasks,
            idle=self._idle,
            end=self._end,
            lingers=lambda: self.puller.lingers,
        )
        self.puller = Puller(
            client,
            stream,
            lanes,
            room=self._slots.room,
            accept=self._accept,
            in_hand=lambda: len(self._tasks),
            hand_back=self._hand_back,
            settings=pull,
            events=PullEvents(
                pulled=metrics.pulled,
                failed=self._pull_failed,
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
            self._settling.superseded(info)
            logger.warning(
                "message dropped: the event loop stood still, another worker may have it",
                extra={"lane": info.consumer, "seq": info.sequence, "delivery": info.number},
            )
            self.puller.start_over()  # what else those pulls bring is as old
            return True  # no NAK: that would take it from that worker
        before = self._in_hand.of(info)
        if before is not None and self._adopted(before, message, info, asked):
            return True
        if self._slots.room(info.consumer) <= 0:
            return False
        work = self._begin(before, message, info, asked)
        task = work.task = asyncio.get_running_loop().create_task(
            self._work(work, before), name=f"delivery-{info.sequence}"
        )
        self._tasks[task] = work
        self._slots.take(info.consumer)
        self._idle.clear()
        self._metrics.set_slots_busy(len(self._tasks))
        task.add_done_callback(self._done)
        return True

    def _adopted(self, work: Work, message: Msg, info: DeliveryInfo, asked: float) -> bool:
        """Let the work on a message go on with its repetition, if it can."""
        if not work.adopts:
            return False
        self._leases.remove(work.lease)
        work.adopt(message, info, self._leases.add(message.reply, work.lease_lost, asked=asked))
        logger.info(
            "delivered again while it is being worked on",
            extra={"lane": info.consumer, "seq": info.sequence, "delivery": info.number},
        )
        return True

    def _begin(self, before: Work | None, message: Msg, info: DeliveryInfo, asked: float) -> Work:
        """Take a message in hand; ``before`` is the work on it that must have ended first."""
        delivery = Delivery(
            payload=message.data,
            headers=dict(message.headers or {}),
            subject=message.subject,
            lane=info.consumer,
            stream=info.stream,
            sequence=info.sequence,
            number=info.number,
            redelivered=info.number > 1 or info.published_ns <= self._reconnected_ns + _SKEW_NS,
            published_ns=info.published_ns,
            epoch=self._epochs.known(info.consumer, info.consumer_sequence) or 0,
        )
        if before is not None:
            before.give_up()
            self._leases.remove(before.lease)

        def lost() -> None:
            work.lease_lost()

        lease = self._leases.add(message.reply, lost, asked=asked)
        work = Work(message, info, delivery, lease)
        self._in_hand.add(work)
        return work

    def _end(self, work: Work) -> None:
        work.phase = Phase.OVER
        work.delivery.revocation.close()
        self._leases.remove(work.lease)
        self._in_hand.remove(work)

    def _pull_failed(self, kind: PullErrorKind) -> None:
        if kind is PullErrorKind.RECONNECTED:
            self._reconnected_ns = time.time_ns()
        self._metrics.count_pull_error(kind)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._slots.release(self._tasks.pop(task).delivery.lane)
        self._metrics.set_slots_busy(len(self._tasks))
        if not self._tasks:
            self._idle.set()
        self.puller.slots_changed()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a delivery's task failed", exc_info=error)

    async def _work(self, work: Work, before: Work | None) -> None:
        if work.delivery.number == 1:
            waited = time.time_ns() - work.delivery.published_ns
            self._metrics.observe_queue_wait(waited / _NS)
        try:
            if before is not None:
                await before.ended()
            if work.delivery.redelivered or not work.delivery.epoch:
                await self._look_up(work)
            finished = work.noted.note.finished
            if finished is not None:
                work.settling = True
                await self._settling.settle_found(work, finished)
                return
            ending = await self._handle(work.delivery)
            # The outcome is known: no cancellation of ours must stop us from saying so. (A shield
            # would be a second task for each delivery.)
            work.settling = True
            await self._settling.settle(work, ending)
        finally:
            self._end(work)

    async def _look_up(self, work: Work) -> None:
        """Learn what the message alone does not say: its consumer's epoch, earlier deliveries."""
        number = work.delivery.number
        epoch = await self._epochs.of(work.info.consumer, work.info.consumer_sequence)
        seen = work.delivery.redelivered
        stored = await self._notes.read(key_of(work.info)) if seen else None
        if stored is None:  # the first delivery, or nothing is known: no crash is counted
            work.delivery = replace(work.delivery, epoch=epoch)
            return
        work.noted = stored
        work.delivery = replace(
            work.delivery,
            epoch=epoch,
            attempts=stored.note.attempts,
            crashes=stored.note.crashes_before(number),
        )

    async def _hand_back(self, message: Msg, info: DeliveryInfo) -> None:
        """Give a message back that no slot was free for; it stays ours until then.

        While a drain lets its request finish here it is no other worker's, and is kept.

        Raises:
            QueueError: If the server did not confirm it.
        """
        before = self._in_hand.of(info)
        if before is not None and self._adopted(before, message, info, 0.0):
            return
        work = self._begin(before, message, info, 0.0)
        work.phase, work.task = Phase.RETURNING, asyncio.current_task()
        try:
            if before is not None:
                await before.ended()
            await self._settling.hand_back(work)
        finally:
            self._end(work)

    # --- the end ----------------------------------------------------------------------

    def revoke_all(self) -> None:
        """End what runs: no final, the caller sees an incomplete stream."""
        self._draining.revoke_all()

    async def drain(self, budget: float, *, reserve: float, hurry: asyncio.Event) -> Drained:
        """Finish what runs within ``budget`` seconds; leases are renewed all the while.

        Args:
            budget: Seconds for everything.
            reserve: Part of it, in seconds, kept for ending what has not finished by then.
            hurry: Set when the operator wants no more waiting.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + budget
        abandoned = await self._draining.run(end, reserve=reserve, hurry=hurry)
        await self._settling.close(min(_LAST_NOTES, end - clock()))
        return Drained(interrupted=self._settling.interrupted, abandoned=abandoned)
