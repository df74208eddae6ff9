"""The limits: frames over the loop-back, with nothing else."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.child import Child
from benchmarks.systems.system import System


@asynccontextmanager
async def raw(loop: str, *options: str) -> AsyncGenerator[System]:
    """Run a worker and a client, both on ``asyncio``'s or ``uvloop``'s event loop.

    Args:
        loop: Which one.
        options: ``json``: frames are not prepared; items are written and read as JSON.
    """
    async with Child(sys.executable, "benchmarks.peers.raw_worker", [loop, *options]) as worker:
        port = (await worker.ask())["port"]
        arguments = [loop, str(port), *options]
        async with Child(sys.executable, "benchmarks.peers.raw_client", arguments) as client:
            assert worker.usage is not None  # noqa: S101 -- it runs
            yield System(client, {"worker": worker.usage})
