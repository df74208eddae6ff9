"""Dynamo's worker, unmodified, with the engine of all scenarios."""

import asyncio
import importlib
import os
import sys
from typing import Any

from benchmarks.lines import serve
from benchmarks.peers import engine
from benchmarks.peers.loops import run

dynamo: Any = importlib.import_module("dynamo.runtime")  # only there in a peer's environment


async def _main(endpoint: str) -> None:
    plane = os.environ["DYN_REQUEST_PLANE"]
    runtime = dynamo.DistributedRuntime(asyncio.get_running_loop(), "file", plane)
    serving = asyncio.ensure_future(runtime.endpoint(endpoint).serve_endpoint(engine.generate))
    waiting = asyncio.ensure_future(serve(_nothing))
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    await serving  # it ends first only by an error


async def _nothing(command: dict[str, Any]) -> dict[str, Any]:
    return command


run(_main(sys.argv[2]))
