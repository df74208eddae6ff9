"""When a worker must end, why, and how much time that may take: one budget for every step."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from dialback.queue.consumer import Drained
from dialback.tasks import cancel_and_wait
from dialback.worker_exit import WorkerExit, exit_for

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LEAST_BUDGET: Final = 1.0  # seconds that every step of the end gets


class Shutdown:
    """The end of a worker, from the first signal to the exit code.

    Attributes:
        begun: Set when the worker must drain and end.
        hurry: Set when running requests must end too.
        closed: Whether NATS closed the connection for good.
    """

    def __init__(self, budget: float) -> None:
        """Allow ``budget`` seconds, counted from the first signal."""
        self.begun = asyncio.Event()
        self.hurry = asyncio.Event()
        self.closed = False
        self._budget = budget
        self._begun_at: float | None = None
        self._pulls_dead = False

    def begin(self) -> None:
        """Drain and end; a second call ends running requests too."""
        if self.begun.is_set():
            self.hurry.set()
        else:
            self._begun_at = time.monotonic()
        self.begun.set()

    def connection_closed(self) -> None:
        """NATS closed the connection for good: nothing can be settled any more."""
        if not self.closed:
            logger.error("NATS closed the connection for good; ending")
            self.closed = True
            self.begun.set()
            self.hurry.set()

    def pulls_failed(self, reason: str, error: BaseException | None = None) -> None:
        """Pulls cannot be revived: drain, then let the process supervisor start a new worker."""
        logger.error(
            "pulls cannot be revived; draining, then the process supervisor should restart this",
            extra={"reason": reason},
            exc_info=error,
        )
        if not self.begun.is_set():
            self._pulls_dead = True
            self.begin()

    async def unless_begun(self, starting: Coroutine[Any, Any, _T]) -> _T | None:
        """Await a part of the start; cancel it and return ``None`` when told to end."""
        work = asyncio.create_task(starting, name="start")
        ending = asyncio.create_task(self.begun.wait(), name="stop")
        try:
            await asyncio.wait((work, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(work, ending, within=self.budget_left())
        return work.result() if work.done() and not work.cancelled() else None

    def budget_left(self) -> float:
        """Seconds that are left for what comes now; never less than one."""
        used = 0.0 if self._begun_at is None else time.monotonic() - self._begun_at
        return max(_LEAST_BUDGET, self._budget - used)

    def exit(self, drained: Drained) -> WorkerExit:
        """Return the exit code, and log it."""
        code = exit_for(
            drained,
            closed=self.closed,
            pulls_dead=self._pulls_dead,
            hurried=self.hurry.is_set(),
        )
        logger.info(
            "worker ended",
            extra={
                "interrupted": drained.interrupted,
                "abandoned": drained.abandoned,
                "exit_code": int(code),
            },
        )
        return code
