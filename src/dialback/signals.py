"""SIGTERM and SIGINT of a process that ends in an orderly way."""

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

logger = logging.getLogger(__name__)


@asynccontextmanager
async def on_signals(stop: Callable[[], None]) -> AsyncGenerator[None]:
    """Let SIGTERM and SIGINT call ``stop``; a third one has its default effect."""
    loop = asyncio.get_running_loop()
    received = 0

    def handle(number: signal.Signals) -> None:
        nonlocal received
        received += 1
        logger.info("signal received", extra={"signal": number.name, "count": received})
        stop()
        if received > 1:
            _remove()

    def _remove() -> None:
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(one)

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, handle, one)
    try:
        yield
    finally:
        _remove()
