"""Items that wait for the caller of a response stream, bounded in number and bytes."""

import asyncio
from collections import deque
from typing import Any, Final

MAX_BUFFERED_ITEMS: Final = 64
"""Items waiting for the caller before the worker is held back; Dynamo's channel size."""
MAX_BUFFERED_BYTES: Final = 1024 * 1024
"""Their bytes: large items are held back sooner, whatever their number."""


class Backlog:
    """A queue of one reader. Putting never waits: whoever puts looks at :attr:`full`."""

    __slots__ = ("_bytes", "_items", "_waiter")

    def __init__(self) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def full(self) -> bool:
        """Whether the worker should be held back."""
        return len(self._items) >= MAX_BUFFERED_ITEMS or self._bytes >= MAX_BUFFERED_BYTES

    @property
    def roomy(self) -> bool:
        """Whether enough was taken to read on; half, so that reading does not flutter."""
        items, size = len(self._items), self._bytes
        return items <= MAX_BUFFERED_ITEMS // 2 and size <= MAX_BUFFERED_BYTES // 2

    def put(self, item: object, size: int) -> None:
        """Append an item that came in ``size`` bytes."""
        self._items.append((item, size))
        self._bytes += size
        self.wake()

    def take(self) -> Any:
        """Return the oldest item; there must be one."""
        item, size = self._items.popleft()
        self._bytes -= size
        return item

    async def wait(self) -> None:
        """Wait for the next :meth:`wake`."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Wake the reader: an item came, or none will."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
