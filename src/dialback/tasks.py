"""Ending tasks that may not notice that they are cancelled."""

import asyncio
from typing import Any, Final

_AGAIN: Final = 2.0  # seconds; what a cancelled task still does, letting a claim go, takes one


async def cancel_and_wait(*tasks: asyncio.Task[Any], within: float | None = None) -> None:
    """Cancel tasks, again and again, until they have ended.

    Once is not enough for a task that talks to NATS. Python 3.11's ``wait_for``, in which nats-py
    awaits each answer, loses a cancellation that comes in the same turn of the event loop as the
    answer; and with any Python nats-py drops one that comes while it waits for room in its send
    buffer (``Client._flush_pending``). The task goes on then, and who awaits it may wait for ever.

    Raises nothing of theirs; ask the tasks how they ended.

    Args:
        tasks: Which ones; those that have ended are left alone.
        within: Seconds after which those that still run are left alone too; ``None`` for never.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + (float("inf") if within is None else within)
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        left = end - clock()
        _, running = await asyncio.wait(running, timeout=max(0.0, min(_AGAIN, left)))
        if left <= _AGAIN:
            break
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # seen: asyncio need not complain
