"""JSON lines between a peer and its test: commands on stdin, events on stdout.

Run by the Python of a Dynamo release, so only the standard library is imported here.
"""

import asyncio
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

_LIMIT = 2**26  # bytes of one line


def tell(number: int, event: str, **facts: Any) -> None:
    """Tell the test what happened in one of its commands."""
    sys.stdout.write(json.dumps({"number": number, "event": event, **facts}) + "\n")
    sys.stdout.flush()


def name_of(error: BaseException) -> dict[str, str]:
    """An exception, as a test wants to see it."""
    return {"type": type(error).__name__, "text": str(error)}


async def serve_commands(carry_out: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """Carry out commands side by side until stdin ends, then leave at once."""
    faulthandler.register(signal.SIGUSR1)  # a test that waits in vain wants to see where
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    tell(0, "ready")
    while line := await reader.readline():
        task = asyncio.create_task(_reported(carry_out, json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)
    os._exit(0)  # Dynamo's runtime threads need not agree


async def _reported(
    carry_out: Callable[[dict[str, Any]], Awaitable[None]], command: dict[str, Any]
) -> None:
    try:
        await carry_out(command)
    except Exception as error:  # whatever it is, the test wants to know
        tell(command["number"], "failed", error=name_of(error))
