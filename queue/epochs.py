"""The epoch of each lane: when its consumer was created. Delivery numbers begin anew with it.

Source: overview section 4 (fencing by epoch and delivery).
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import lru_cache

from dialback.errors import DialbackError
from dialback.queue.inspection import time_ns
from dialback.queue.lane_repair import Restore

logger = logging.getLogger(__name__)

_read = lru_cache(maxsize=16)(time_ns)  # the same few with every delivery


class Epochs:
    """Knows the epochs, and notices when one has changed.

    A consumer counts its deliveries; a count that goes back may be that of a new consumer.
    """

    def __init__(self, created: Mapping[str, str], refresh: Restore) -> None:
        """Read epochs from what a topology has found.

        Args:
            created: Lane to RFC 3339 time of its consumer; changes under our hands.
            refresh: Asks the server for it.
        """
        self._created = created
        self._refresh = refresh
        self._highest: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def known(self, lane: str, consumer_sequence: int) -> int | None:
        """Return the epoch of a delivery if nobody has to be asked; see :meth:`of`."""
        created = self._created.get(lane)
        if (
            created is None
            or consumer_sequence < self._highest.get(lane, 0)
            or self._lock.locked()  # it is being asked about
        ):
            return None
        self._highest[lane] = consumer_sequence
        return _read(created)

    async def of(self, lane: str, consumer_sequence: int) -> int:
        """Return the epoch of a delivery, Unix nanoseconds; 0 if it is not known.

        Args:
            lane: Its lane.
            consumer_sequence: Its number among the consumer's deliveries.
        """
        async with self._lock:  # those that come after it wait for the answer too
            if lane not in self._created or consumer_sequence < self._highest.get(lane, 0):
                await self._ask(lane)
            self._highest[lane] = max(consumer_sequence, self._highest.get(lane, 0))
        created = self._created.get(lane)
        return _read(created) if created else 0

    async def _ask(self, lane: str) -> None:
        try:
            await self._refresh()
        except DialbackError as error:
            logger.warning(
                "it could not be asked whether a lane's consumer is a new one",
                extra={"lane": lane, "reason": str(error)},
            )
        else:
            self._highest.pop(lane, None)
