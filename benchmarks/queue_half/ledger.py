"""Counts settled jobs in a child, and says when so many were. Standard library only."""

import asyncio
import time
from collections.abc import Callable


def _nobody() -> None:
    pass


class Ledger:
    """From :meth:`begin` on, counts jobs whose settling the server confirmed.

    Attributes:
        settled: So many are.
    """

    def __init__(self) -> None:
        """Nothing was settled yet."""
        self.settled = 0
        self._listener = _nobody
        self._began = 0.0
        self._awaited = 0
        self._failed = False
        self._reached: asyncio.Future[float] | None = None

    def begin(self) -> None:
        """The clock starts."""
        self._began = time.perf_counter()

    def on_settled(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` for each job that is settled from now on."""
        self._listener = listener

    def settle(self, *, completed: bool = True) -> None:
        """One more job is settled; if it is not ``completed``, the run is worth nothing."""
        self._failed = self._failed or not completed
        self.settled += 1
        self._listener()
        if self.settled == self._awaited and self._reached is not None:
            self._reached.set_result(self._passed())

    async def reached(self, count: int) -> float:
        """Wait until so many jobs are settled; return the seconds that took from the beginning.

        Raises:
            RuntimeError: If one of them was not completed.
        """
        if self.settled >= count:
            seconds = self._passed()
        else:
            self._awaited = count
            self._reached = asyncio.get_running_loop().create_future()
            seconds = await self._reached
        if self._failed:
            raise RuntimeError("jobs were settled that were not completed")
        return seconds

    def _passed(self) -> float:
        return time.perf_counter() - self._began
