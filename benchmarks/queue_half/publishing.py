"""A child: publishes requests with dialback's publisher, so many at a time in flight."""

import asyncio
import time
from typing import Any

import uvloop

from benchmarks.lines import serve
from benchmarks.queue_half.requests import ENDPOINT, request
from dialback.queue.client import QueueClient
from dialback.queue.topology import Topology
from dialback.settings import Settings


async def carry_out(command: dict[str, Any]) -> dict[str, Any]:
    """Publish ``count`` requests to ``server``, ``at_once`` in flight; answer with seconds.

    The requests are prepared before the clock starts, which runs to the last acknowledgement.
    """
    settings = Settings.load(server=command["server"])
    client = await QueueClient.open(settings.server_address(), name="bench", role="requester")
    await Topology(client.api, ENDPOINT, settings.queue_settings()).ensure()
    requests = [request() for _ in range(command["count"])]

    async def publish() -> None:
        while requests:
            await client.publisher.publish(*requests.pop())

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(command["at_once"]):
            group.create_task(publish())
    seconds = time.perf_counter() - began
    await client.close()
    return {"seconds": seconds}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(carry_out))
