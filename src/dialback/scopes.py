"""Waiting that ends for another reason than what is waited for, without a task or an exception.

What asyncio offers (``wait_for``, ``timeout``, ``wait`` over tasks) costs as much as a step of a
request itself, and a request has half a dozen steps to which its caller, its lease or an operator
can put an end. No I/O.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class Latch:
    """An event that happens once, and one waiter at a time who may give up."""

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._set

    def set(self) -> None:
        """It happens now; a second time changes nothing."""
        self._set = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float | None) -> bool:
        """Wait until it happens, at most so long; return whether it has.

        Args:
            seconds: ``None`` for as long as it takes.
        """
        if self._set:
            return True
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._wake) if seconds is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        return self._set


class Scope:
    """An await that can be cut short from outside, in the very task that makes it.

    Attributes:
        ended_it: Whether :meth:`cut` is what ended the await.
    """

    __slots__ = ("_cut", "_task", "ended_it")

    def __init__(self) -> None:
        self.ended_it = False
        self._cut = False
        self._task: asyncio.Task[Any] | None = None

    def cut(self) -> None:
        """Cancel what is awaited, or about to be; a second time changes nothing."""
        if not self._cut:
            self._cut = True
            if self._task is not None:
                self._task.cancel()

    async def run(
        self, work: Coroutine[Any, Any, _Result], *, within: float | None = None
    ) -> _Result | None:
        """Await ``work`` once; return its result, or ``None`` if it was cut short.

        Args:
            work: What to await.
            within: Seconds after which it is cut.

        Raises:
            Exception: What ``work`` raises.
            asyncio.CancelledError: If somebody else cancels the task, whether it was cut or not.
        """
        if self._cut:
            work.close()
            self.ended_it = True
            return None
        task = self._task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a coroutine runs in a task
        before = task.cancelling()
        timer = asyncio.get_running_loop().call_later(within, self.cut) if within else None
        try:
            return await work
        except asyncio.CancelledError:
            # Ours only if nobody else asked for it too.
            self.ended_it = self._cut and task.cancelling() == before + 1
            if not self.ended_it:
                raise
            return None
        finally:
            self._task = None
            if timer is not None:
                timer.cancel()
            if self._cut:
                task.uncancel()
