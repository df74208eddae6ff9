"""Dynamo's client, unmodified; its environment says on which plane and where."""

import asyncio
import importlib
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.lines import serve
from benchmarks.peers.asking import Reading, carry_out
from benchmarks.peers.loops import run

dynamo: Any = importlib.import_module("dynamo.runtime")  # only there in a peer's environment

_NOBODY = ("No workers available for endpoint", "not found for endpoint")
_PROBE = {"n": 1, "size": 0, "pause": 0, "turn": False}
_START = 30.0  # seconds


async def _main(endpoint: str) -> None:
    plane = os.environ["DYN_REQUEST_PLANE"]
    runtime = dynamo.DistributedRuntime(asyncio.get_running_loop(), "file", plane)
    client = await runtime.endpoint(endpoint).client()
    await client.wait_for_instances()

    async def ask(request: dict[str, Any], reading: Reading) -> None:
        stream = await client.round_robin(request)
        await reading.read(item.data() async for item in stream)

    await _reached(lambda: ask(_PROBE, Reading(1)))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a line for each request, whatever DYN_LOG is
    await serve(lambda command: carry_out(command, ask))


async def _reached(probe: Callable[[], Awaitable[None]]) -> None:
    """Try until the worker answers: the client's list and its router learn of it in turn."""
    async with asyncio.timeout(_START):
        while True:
            try:
                return await probe()
            except Exception as error:
                if not any(words in str(error) for words in _NOBODY):
                    raise
            await asyncio.sleep(0.02)


run(_main(sys.argv[2]))
