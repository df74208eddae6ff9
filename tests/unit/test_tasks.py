import asyncio
from contextlib import suppress

import pytest

from dialback.tasks import cancel_and_wait


async def started(work: "asyncio.Task[None]") -> "asyncio.Task[None]":
    """Let a task run until it waits."""
    await asyncio.sleep(0)
    assert not work.done()
    return work


async def swallowing(cancellations: int) -> None:
    """Go on after so many cancellations, as a task whose ``wait_for`` lost them."""
    for _ in range(cancellations):
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    await asyncio.Event().wait()


@pytest.mark.parametrize("swallowed", [0, 1, 3])
async def test_a_task_that_loses_cancellations_is_cancelled_until_it_has_ended(
    swallowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.tasks._AGAIN", 0.001)
    task = await started(asyncio.create_task(swallowing(swallowed)))
    await cancel_and_wait(task)
    assert task.cancelled()


async def test_a_cancellation_that_comes_with_the_answer_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialback.tasks._AGAIN", 0.001)
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def request_and_go_on() -> None:
        await asyncio.wait_for(answer, 3600)  # as nats-py does; until Python 3.12 it loses it
        await asyncio.Event().wait()

    task = await started(asyncio.create_task(request_and_go_on()))
    answer.set_result(None)
    await cancel_and_wait(task)
    assert task.cancelled()


async def test_several_tasks_end_together_and_those_that_have_ended_are_left_alone() -> None:
    async def ends() -> str:
        return "result"

    async def fails() -> None:
        raise OSError("the wire is cut")

    ended, failed = asyncio.create_task(ends()), asyncio.create_task(fails())
    await asyncio.wait((ended, failed))
    running = [await started(asyncio.create_task(swallowing(0))) for _ in range(3)]
    await cancel_and_wait(ended, failed, *running)
    assert ended.result() == "result"
    assert str(failed.exception()) == "the wire is cut"
    assert all(task.cancelled() for task in running)


async def test_what_a_task_raises_at_its_end_is_its_own_affair() -> None:
    async def fails_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the wire is cut")

    task = await started(asyncio.create_task(fails_at_the_end()))
    await cancel_and_wait(task)
    assert str(task.exception()) == "the wire is cut"


async def test_a_task_that_ignores_every_cancellation_is_left_alone_after_a_while() -> None:
    go = asyncio.Event()

    async def stubborn() -> None:
        while not go.is_set():
            with suppress(asyncio.CancelledError):
                await go.wait()

    task = await started(asyncio.create_task(stubborn()))
    await cancel_and_wait(task, within=0.01)
    assert not task.done()
    go.set()
    await task


async def test_without_tasks_there_is_nothing_to_wait_for() -> None:
    await cancel_and_wait()
