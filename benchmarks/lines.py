"""The child's side of a benchmark: commands as JSON lines on stdin, one answer each on stdout.

Run by the Pythons of the peers too, so only the standard library is imported here.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

_LIMIT = 2**26  # bytes of one line


async def serve(carry_out: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Say ``{"ready": true}``, carry out commands one after the other, leave when stdin ends.

    A command that raises is answered with ``{"error": text}``. The process leaves at once and
    without clean-up: a peer's threads need not agree.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say({"ready": True})
    while line := await reader.readline():
        try:
            answer = await carry_out(json.loads(line))
        except Exception as error:  # the parent wants to know, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(answer)
    os._exit(0)


def say(document: dict[str, Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
