import asyncio

import pytest

from dialback.scopes import Latch, Scope

# --- latch --------------------------------------------------------------------------------


async def test_a_latch_that_is_set_is_not_waited_for() -> None:
    latch = Latch()
    latch.set()
    latch.set()
    assert latch.is_set()
    assert await latch.wait(None)


async def test_a_latch_wakes_its_waiter() -> None:
    latch = Latch()
    waiting = asyncio.create_task(latch.wait(600))
    await asyncio.sleep(0)
    assert not waiting.done()
    latch.set()
    assert await waiting


async def test_who_waits_for_a_latch_gives_up_and_may_wait_again() -> None:
    latch = Latch()
    assert not await latch.wait(0.001)
    assert not latch.is_set()
    waiting = asyncio.create_task(latch.wait(None))
    await asyncio.sleep(0)
    latch.set()
    assert await waiting


async def test_a_cancelled_waiter_leaves_the_latch_as_it_is() -> None:
    latch = Latch()
    waiting = asyncio.create_task(latch.wait(600))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    latch.set()
    assert await latch.wait(None)


# --- scope --------------------------------------------------------------------------------


class Await:
    """Awaits an event within a scope, in a task of its own."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.event = asyncio.Event()
        self.scope: Scope | None = None
        self._stubborn = stubborn
        self.task = asyncio.create_task(self._run())

    async def _work(self) -> str:
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            if not self._stubborn:
                raise
        return "done"

    async def _run(self) -> str | None:
        self.scope = Scope()
        result = await self.scope.run(self._work())
        assert self.scope.ended_it == (result is None)
        await asyncio.sleep(0)  # nothing of the scope is left that could cancel this
        return result

    async def begun(self) -> Scope:
        await asyncio.sleep(0)
        assert self.scope is not None
        return self.scope


async def test_what_is_awaited_in_a_scope_ends_by_itself() -> None:
    awaiting = Await()
    await awaiting.begun()
    awaiting.event.set()
    assert await awaiting.task == "done"


async def test_a_cut_ends_the_await_and_not_the_task() -> None:
    awaiting = Await()
    scope = await awaiting.begun()
    scope.cut()
    scope.cut()
    assert await awaiting.task is None
    assert awaiting.task.cancelling() == 0


async def test_what_was_cut_before_it_began_does_not_begin() -> None:
    begun: list[bool] = []

    async def work() -> str:
        begun.append(True)
        return "done"

    scope = Scope()
    scope.cut()
    assert await scope.run(work()) is None
    assert scope.ended_it
    assert begun == []
    await asyncio.sleep(0)  # this task was not cancelled


async def test_a_cut_after_the_end_cancels_nothing() -> None:
    awaiting = Await()
    scope = await awaiting.begun()
    awaiting.event.set()
    assert await awaiting.task == "done"
    scope.cut()
    assert awaiting.task.cancelling() == 0


async def test_a_cancellation_from_elsewhere_is_no_cut() -> None:
    awaiting = Await()
    await awaiting.begun()
    awaiting.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await awaiting.task


async def test_a_cancellation_besides_a_cut_is_not_lost() -> None:
    awaiting = Await()
    scope = await awaiting.begun()
    scope.cut()
    awaiting.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await awaiting.task


async def test_work_that_ends_in_spite_of_a_cut_has_its_result() -> None:
    awaiting = Await(stubborn=True)
    scope = await awaiting.begun()
    scope.cut()
    assert await awaiting.task == "done"
    assert awaiting.task.cancelling() == 0
