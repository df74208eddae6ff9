"""The engine's life in a worker: started, asked whether it is ready, shut down in time."""

import asyncio
import logging
from typing import Final

from dialback.ingress.engine import Engine
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

_ASK_EVERY: Final = 0.5  # seconds
_READY_TIMEOUT: Final = 5.0  # seconds for one answer of the engine's ready()
_LAST_WORD: Final = 1.0  # seconds for its shutdown() to heed its cancellation


class EngineLife:
    """Runs an engine's ``startup``, ``ready`` and ``shutdown``.

    Attributes:
        ready: The engine's last answer.
    """

    def __init__(self, engine: Engine) -> None:
        """Nothing is called yet."""
        self._engine = engine
        self.ready = False

    async def watch(self) -> None:
        """Ask the engine again and again whether it is ready, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_READY_TIMEOUT):
                    self.ready = await self._engine.ready()
            except Exception:
                self.ready = False
                logger.exception("the engine's ready() failed, or took more than 5 s")
            await asyncio.sleep(_ASK_EVERY)

    async def shut_down(self, within: float, hurry: asyncio.Event) -> None:
        """Run the engine's ``shutdown()``, but not for longer than there is time.

        Args:
            within: Seconds it may take.
            hurry: Set when nobody wants to wait any more.
        """
        closing = asyncio.create_task(self._engine.shutdown(), name="engine-shutdown")
        hurrying = asyncio.create_task(hurry.wait(), name="hurry")
        await asyncio.wait((closing, hurrying), timeout=within, return_when=asyncio.FIRST_COMPLETED)
        late = not closing.done()
        await cancel_and_wait(closing, hurrying, within=_LAST_WORD)
        if late:
            logger.error("the engine's shutdown() did not end in time and was cancelled")
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            logger.error("the engine's shutdown() failed", exc_info=error)
