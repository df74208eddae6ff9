"""Whose queue half is measured: dialback's and the peers' workers, and where those live."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from benchmarks.environments import Environment, python_of
from benchmarks.queue_half.jobs import json_job, taskiq_job
from benchmarks.queue_half.rig import System

PEERS: Final = Environment(
    "queue-peers",
    (
        "faststream[nats]==0.7.8",
        "taskiq==0.13.0",
        "taskiq-nats==0.7.0",
        "nats-py==2.16.0",
        "orjson==3.13.0",
        "uvloop==0.23.0",
    ),
    module="faststream.nats",
)
"""FastStream and taskiq with what makes them fast: uvloop, and orjson where they use it."""


def dialback(without: Sequence[str] = ()) -> System:
    """Return dialback's queue half; ``without`` some of its parts: see the child."""
    return System(python=sys.executable, module="benchmarks.queue_half.worker", without=without)


async def peers() -> dict[str, System]:
    """Return the peers by name; makes their environment if it is not there.

    Raises:
        RuntimeError: If it cannot be made.
    """
    python = str(await asyncio.to_thread(python_of, PEERS))
    faststream = System(python=python, module="benchmarks.peers.queue_faststream", make=json_job)
    return {
        "faststream": faststream,
        "faststream, no log": replace(faststream, without=["events"]),
        "faststream, no log, in batches": replace(faststream, without=["events", "workers"]),
        "taskiq": System(python=python, module="benchmarks.peers.queue_taskiq", make=taskiq_job),
        "nats-py alone": System(python=python, module="benchmarks.peers.queue_nats", make=json_job),
    }
