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
        self._reached: asyncio.Future[float] | None = None

    def begin(self) -> None:
        """The clock starts."""
        self._began = time.perf_counter()

    def on_settled(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` for each job that is settled from now on."""
        self._listener = listener

    def settle(self) -> None:
        """One more job is settled."""
        self.settled += 1
        self._listener()
        if self.settled == self._awaited and self._reached is not None:
            self._reached.set_result(self._passed())

    async def reached(self, count: int) -> float:
        """Wait until so many jobs are settled; return the seconds that took from the beginning."""
        if self.settled >= count:
            return self._passed()
        self._awaited = count
        self._reached = asyncio.get_running_loop().create_future()
        return await self._reached

    def _passed(self) -> float:
        return time.perf_counter() - self._began
