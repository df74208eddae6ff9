"""Messages that are given back without having been worked on.

They were pulled, but no slot was free for them or the worker had stopped. Each is handed back
in a task of its own: that may take several round trips, and pulling goes on meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from nats.aio.msg import Msg

from dialback.errors import QueueError
from dialback.queue.delivery import DeliveryInfo
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

_WAIT_AT_END: Final = 10.0  # seconds; a leader election takes up to nine

HandBack: TypeAlias = Callable[[Msg, DeliveryInfo], Awaitable[None]]
"""Gives one message back to its consumer, so that another worker gets it at once."""


class HandBacks:
    """Runs hand-backs in tasks of their own."""

    def __init__(self, hand_back: HandBack, done: Callable[[], None]) -> None:
        """Prepare.

        Args:
            hand_back: Gives one message back.
            done: Called for each that was given back.
        """
        self._hand_back = hand_back
        self._done = done
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, message: Msg, info: DeliveryInfo) -> None:
        """Give a message back, soon."""
        task = asyncio.create_task(self._run(message, info), name=f"hand-back-{info.sequence}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is under way, but not for long; its lease ends by itself."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=_WAIT_AT_END)
        await cancel_and_wait(*late)
        if late:
            logger.warning(
                "messages could not be handed back; they come again when their lease ends",
                extra={"messages": len(late)},
            )

    async def _run(self, message: Msg, info: DeliveryInfo) -> None:
        facts = {"lane": info.consumer, "seq": info.sequence, "delivery": info.number}
        try:
            await self._hand_back(message, info)
        except QueueError as error:
            logger.warning(
                "a message was not handed back; it comes again when its lease ends",
                extra=facts | {"reason": str(error)},
            )
        except Exception:
            logger.exception(
                "a message could not be handed back; it comes again when its lease ends",
                extra=facts,
            )
        else:
            self._done()
