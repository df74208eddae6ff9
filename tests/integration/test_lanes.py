"""Lanes at work: the flooded one starves nobody, and a reserved slot stays free for its lane."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dialback import Context, Requester, Settings, Worker, WorkerExit
from dialback.queue.client import QueueClient
from dialback.queue.delivery import ACK
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.lanes import REVERSED_EVERY
from dialback.queue.topology import Endpoint, Lane
from support.eventually import eventually
from support.queue_rig import (
    Taken,
    lane_state,
    nothing_left,
    provision,
    pulling,
    put,
)

pytestmark = pytest.mark.integration


async def test_a_flood_of_high_requests_lets_a_low_one_through_within_eight_passes(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "patient", lane=Lane.LOW)
    for number in range(20):
        await put(queue_client, endpoint, f"urgent-{number}", lane=Lane.HIGH)
    taken = Taken(slots=1)
    async with pulling(queue_client.connection, taken, stream=endpoint.stream) as puller:
        for count in range(1, 22):
            await taken.until(count)
            message, _ = taken.messages[-1]
            await queue_client.settler.confirm(message, ACK)
            taken.busy -= 1
            puller.slots_changed()
    assert taken.tokens.index("patient") < REVERSED_EVERY
    assert len(set(taken.tokens)) == 21
    await nothing_left(queue_client, endpoint)


class Held:
    """An engine that holds what it runs, and counts it by lane."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most_low = 0
        self.release = asyncio.Event()

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.running.append(context.lane)
        self.most_low = max(self.most_low, self.running.count("low"))
        if context.lane == "low":
            await self.release.wait()
        yield request
        self.running.remove(context.lane)


async def test_a_reserved_slot_stays_free_and_a_high_request_starts_at_once(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    engine = Held()
    settings = Settings.load(
        server=nats_server.url, slots=2, reserved_slots="high=1", status_port=-1
    )
    worker = Worker(engine, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))

    async def has_pulls() -> bool:
        return worker.metrics.service.last_pull > 0

    async with Requester(settings) as requester:

        async def ask(number: int, lane: str) -> list[Any]:
            async with requester.generate(str(endpoint), number, lane=lane) as stream:
                return [item async for item in stream]

        await eventually(has_pulls)
        flood = [asyncio.create_task(ask(number, "low")) for number in range(6)]

        async def low_lane() -> tuple[list[str], int]:
            return engine.running, (await lane_state(queue_client, endpoint, Lane.LOW))[
                "num_pending"
            ]

        await eventually(low_lane, lambda found: found == (["low"], 5))
        for number in range(3):
            assert await ask(number, "high") == [number]
        assert engine.running == ["low"]
        engine.release.set()
        assert await asyncio.gather(*flood) == [[number] for number in range(6)]
    worker.stop()
    assert await running is WorkerExit.CLEAN
    assert engine.most_low == 1
    await nothing_left(queue_client, endpoint)
