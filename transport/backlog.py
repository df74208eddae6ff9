"""Items that wait for the caller of a response stream, bounded in number and bytes."""

import asyncio
from collections import deque
from typing import Any, Final

MAX_BUFFERED_ITEMS: Final = 64
"""Items waiting for the caller before the worker is held back; Dynamo's channel size."""
MAX_BUFFERED_BYTES: Final = 1024 * 1024
"""Their bytes: large items are held back sooner, whatever their number."""


class Backlog:
    """A queue of one reader. Putting never waits: whoever puts looks at :attr:`full`.

    Items are kept in the batches they came in, so that one item costs a ``pop``.

    Attributes:
        size: Items that wait.
    """

    __slots__ = ("_batches", "_bytes", "_loop", "_now", "_waiter", "size")

    def __init__(self) -> None:
        self.size = 0
        self._now: list[Any] = []  # the oldest batch, its first item last
        self._batches: deque[tuple[list[Any], int]] = deque()
        self._bytes = 0
        self._loop = asyncio.get_running_loop()  # which costs a system call under Python 3.11
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether the worker should be held back."""
        return self.size >= MAX_BUFFERED_ITEMS or self._bytes >= MAX_BUFFERED_BYTES

    @property
    def roomy(self) -> bool:
        """Whether enough was taken to read on; half, so that reading does not flutter."""
        return self.size <= MAX_BUFFERED_ITEMS // 2 and self._bytes <= MAX_BUFFERED_BYTES // 2

    def put(self, items: list[Any], size: int) -> None:
        """Append at least one item, which came in ``size`` bytes together; takes the list over."""
        items.reverse()
        self._batches.append((items, size))
        self._bytes += size
        self.size += len(items)
        self.wake()

    def take(self) -> Any:
        """Return the oldest item; there must be one. A batch's bytes go with its first item."""
        if not self._now:
            self._now, size = self._batches.popleft()
            self._bytes -= size
        self.size -= 1
        return self._now.pop()

    def change(self) -> "asyncio.Future[None]":
        """Return a future of the next :meth:`wake`, for the one reader to await.

        Raises:
            RuntimeError: If another reader awaits it.
        """
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("a stream has one reader at a time")
        self._waiter = self._loop.create_future()
        return self._waiter

    def wake(self) -> None:
        """Wake the reader: an item came, or none will."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
