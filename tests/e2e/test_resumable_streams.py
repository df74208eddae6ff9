"""Streams that survive their worker: real processes, killed, frozen and drained in mid-stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from dialback.requester import Requester
from dialback.settings import Settings
from support import figures
from support.eventually import eventually
from support.fleet import Fleet, fleet
from support.queue_rig import nothing_left

STREAMS = 200
ITEMS = 200
DELAY = 0.01  # seconds between two items
WORKERS = 4
LEASE = 2.0
SETTINGS = {"ack_wait": LEASE, "slots": 16, "max_crashes": 1_000}
WHOLE = list(range(ITEMS))


@dataclass(slots=True)
class Seen:
    """What the callers of all streams saw."""

    received: list[list[int]] = field(default_factory=list[list[int]])
    resumed: int = 0
    interruptions: int = 0
    longest_gap: float = 0.0

    def show(self, what: str, workers: Fleet) -> None:
        figures.record(
            fault=what,
            streams=len(self.received),
            whole=sum(items == WHOLE for items in self.received),
            kills=workers.kills,
            zombies=workers.zombies,
            drained=len(workers.drained),
            resumed=self.resumed,
            interruptions=self.interruptions,
            longest_gap=self.longest_gap,
        )


@pytest.fixture
async def requester(own_server: EmbeddedServer) -> AsyncGenerator[Requester]:
    async with Requester(Settings.load(server=own_server.url)) as requester:
        yield requester


async def one_stream(requester: Requester, endpoint: Endpoint, seen: Seen) -> None:
    """Receive one stream to its end, whatever happens to its workers."""
    items: list[int] = []
    last = 0.0
    seen.received.append(items)
    asked = requester.generate(
        str(endpoint), {"n": ITEMS, "delay": DELAY}, timeout=110, deadline=115
    )
    async with asked as stream:
        async for item in stream:
            now = time.monotonic()
            if last:
                seen.longest_gap = max(seen.longest_gap, now - last)
            last = now
            items.append(item["i"])
    seen.interruptions += stream.interruptions
    seen.resumed += stream.interruptions > 0


async def all_streams(
    requester: Requester,
    endpoint: Endpoint,
    trouble: Callable[[], Awaitable[None]],
    *,
    enough: Callable[[], bool],
) -> Seen:
    """Receive streams while ``trouble`` goes on again and again, until it was ``enough``."""
    seen = Seen()

    async def call() -> None:
        await one_stream(requester, endpoint, seen)
        while not enough():
            await one_stream(requester, endpoint, seen)

    async def make_trouble() -> None:
        while True:
            await trouble()

    troubling = asyncio.create_task(make_trouble())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(call())
    finally:
        troubling.cancel()
        with suppress(asyncio.CancelledError):
            await troubling
    return seen


async def every_item_once(server: EmbeddedServer, endpoint: Endpoint, seen: Seen) -> None:
    assert len(seen.received) >= STREAMS
    assert all(items == WHOLE for items in seen.received)
    operator = await QueueClient.open(
        Settings.load(server=server.url).server_address(), name="test", role="operator"
    )
    try:
        await nothing_left(operator, endpoint)
    finally:
        await operator.close()


@pytest.mark.parametrize("engine", ["continuing", "replaying"])
async def test_streams_survive_a_sigkill_every_second(
    own_server: EmbeddedServer, requester: Requester, endpoint: Endpoint, engine: str
) -> None:
    async with fleet(
        WORKERS, f"examples.resumable:{engine}", endpoint, own_server.url, **SETTINGS
    ) as workers:

        async def kill() -> None:
            await asyncio.sleep(1)
            await workers.kill_one()

        seen = await all_streams(requester, endpoint, kill, enough=lambda: workers.kills > 0)
        seen.show(f"SIGKILL, {engine}", workers)
        assert workers.kills
        assert seen.interruptions
        await every_item_once(own_server, endpoint, seen)


async def test_streams_survive_zombies(
    own_server: EmbeddedServer, requester: Requester, endpoint: Endpoint
) -> None:
    async with fleet(
        WORKERS, "examples.resumable:continuing", endpoint, own_server.url, **SETTINGS
    ) as workers:
        seen = await all_streams(
            requester,
            endpoint,
            lambda: workers.freeze_one(2 * LEASE),
            enough=lambda: workers.zombies > 0,
        )
        seen.show("SIGSTOP for two leases, SIGCONT", workers)
        assert workers.zombies
        await every_item_once(own_server, endpoint, seen)


async def test_streams_survive_a_broker_that_is_killed_and_started_again(
    own_server: EmbeddedServer, requester: Requester, endpoint: Endpoint
) -> None:
    restarts = 0
    async with fleet(
        WORKERS, "examples.resumable:continuing", endpoint, own_server.url, **SETTINGS
    ) as workers:

        async def restart() -> None:
            nonlocal restarts
            await asyncio.sleep(2)
            await own_server.kill()
            await own_server.start()
            restarts += 1
            await asyncio.sleep(2)

        seen = await all_streams(requester, endpoint, restart, enough=lambda: restarts > 0)
        seen.show(f"broker killed {restarts} times", workers)
        assert restarts
        await every_item_once(own_server, endpoint, seen)


async def test_streams_survive_a_rolling_drain_of_all_workers(
    own_server: EmbeddedServer, requester: Requester, endpoint: Endpoint
) -> None:
    async with fleet(
        WORKERS, "examples.resumable:continuing", endpoint, own_server.url, **SETTINGS
    ) as workers:
        seen = await all_streams(
            requester,
            endpoint,
            workers.drain_one,
            enough=lambda: len(workers.drained) >= WORKERS,
        )
        seen.show("rolling drain", workers)
        assert len(workers.drained) >= WORKERS
        assert set(workers.drained) == {0}
        await every_item_once(own_server, endpoint, seen)


async def test_with_nobody_to_take_over_a_drain_finishes_its_streams(
    own_server: EmbeddedServer, requester: Requester, endpoint: Endpoint
) -> None:
    async with fleet(
        2, "examples.resumable:continuing", endpoint, own_server.url, **SETTINGS
    ) as workers:
        seen = Seen()
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(one_stream(requester, endpoint, seen))

            async def begun() -> bool:
                return len(seen.received) == 8 and all(seen.received)

            await eventually(begun)
            for worker in workers.workers:
                worker.terminate()
        assert [await worker.exit_code() for worker in workers.workers] == [0, 0]
        assert (seen.received, seen.interruptions) == ([WHOLE] * 8, 0)
