"""The limit: pre-encoded frames over the loop-back, with nothing else."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.child import Child
from benchmarks.systems.system import System


@asynccontextmanager
async def raw(loop: str) -> AsyncGenerator[System]:
    """Run a worker and a client, both on ``asyncio``'s or ``uvloop``'s event loop."""
    async with Child(sys.executable, "benchmarks.peers.raw_worker", [loop]) as worker:
        port = (await worker.ask())["port"]
        arguments = [loop, str(port)]
        async with Child(sys.executable, "benchmarks.peers.raw_client", arguments) as client:
            assert worker.usage is not None  # noqa: S101 -- it runs
            yield System(client, {"worker": worker.usage})
