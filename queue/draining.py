"""The end of a consumer: what runs is finished, handed over, ended or left, in this order.

Source: overview section 8.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from dialback.errors import QueueError
from dialback.outcomes import Revoked
from dialback.queue.api import JetStreamApi
from dialback.queue.work import Work
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

_OTHERS_STOP: Final = 0.3  # seconds for workers that are told to stop at the same time
_LOOK_AGAIN: Final = 1.0  # seconds between two looks for a worker that waits
_CANCEL_AGAIN: Final = 1.0  # seconds; see ``tasks.py``


class Draining:
    """Ends the work of one consumer that takes no more messages."""

    def __init__(
        self,
        api: JetStreamApi,
        stream: str,
        tasks: Mapping[asyncio.Task[None], Work],
        *,
        idle: asyncio.Event,
        end: Callable[[Work], None],
        lingers: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Watch a consumer's work.

        Args:
            api: Tells who waits for work.
            stream: The consumer's stream.
            tasks: What runs; changes under our hands.
            idle: Set while nothing runs.
            end: Lets a work's lease go.
            lingers: Returns for how many seconds a stopped worker's pulls may still stand.
        """
        self._api = api
        self._stream = stream
        self._tasks = tasks
        self._idle = idle
        self._end = end
        self._lingers = lingers

    def revoke_all(self) -> None:
        """End what runs: no final, the caller sees an incomplete stream."""
        for work in list(self._tasks.values()):
            work.delivery.revocation.set(Revoked.SHUTDOWN)

    async def run(self, end: float, *, reserve: float, hurry: asyncio.Event) -> int:
        """Finish what runs; return how many deliveries were left to their lease.

        Args:
            end: The event loop's time, in seconds, by which all is to be over.
            reserve: Seconds before that, kept for ending what has not finished by then.
            hurry: Set when the operator wants no more waiting.
        """
        clock = asyncio.get_running_loop().time
        offering = asyncio.create_task(self._offer_handovers(), name="offer-handovers")
        await self._idle_within(end - reserve - clock(), hurry)
        await cancel_and_wait(offering)
        if self._tasks:
            logger.warning("ending what still runs", extra={"running": len(self._tasks)})
            self.revoke_all()
            await self._idle_within(end - clock(), None)
        abandoned = len(self._tasks)
        await self._abandon()
        return abandoned

    async def _abandon(self) -> None:
        """Leave what still runs to its lease; a settling goes on for as long as the loop does."""
        while running := [task for task, work in self._tasks.items() if not work.settling]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_CANCEL_AGAIN)
        for work in self._tasks.values():
            self._end(work)

    async def _offer_handovers(self) -> None:
        """Offer what runs to other workers as soon as one waits for work.

        With none there a stream is better finished here; at the end of the budget it is left to
        whoever comes.
        """
        await asyncio.sleep(_OTHERS_STOP + self._lingers())
        while self._tasks and not await self._somebody_waits():  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(_LOOK_AGAIN)
        for work in list(self._tasks.values()):
            work.delivery.revocation.offer_handover()

    async def _somebody_waits(self) -> bool:
        """Whether another worker waits for work on a lane of what runs here."""
        lanes = {work.delivery.lane for work in self._tasks.values()}
        try:
            infos = [await self._api.consumer_info(self._stream, lane) for lane in lanes]
        except QueueError:
            return False
        return any(info.get("num_waiting", 0) > 0 for info in infos)

    async def _idle_within(self, seconds: float, hurry: asyncio.Event | None) -> None:
        waits = [asyncio.ensure_future(self._idle.wait())]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waits, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
