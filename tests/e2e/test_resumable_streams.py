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
class Figures:
    """What the callers of all streams saw."""

    received: list[list[int]] = field(default_factory=list[list[int]])
    resumed: int = 0
    interruptions: int = 0
    longest_gap: float = 0.0

    def show(self, what: str, workers: Fleet) -> None:
        whole = sum(items == WHOLE for items in self.received)
        print(
            f"\n{what}: {whole} of {len(self.received)} streams whole; kills {workers.kills},"
            f" zombies {workers.zombies}, drained {len(workers.drained)};"
            f" resumed streams {self.resumed}, interruptions {self.interruptions},"
            f" longest gap {self.longest_gap:.2f} s"
        )


@pytest.fixture
async def requester(own_server: EmbeddedServer) -> AsyncGenerator[Requester]:
    async with Requester(Settings.load(server=own_server.url)) as requester:
        yield requester


async def one_stream(requester: Requester, endpoint: Endpoint, figures: Figures) -> None:
    """Receive one stream to its end, whatever happens to its workers."""
    items: list[int] = []
    last = 0.0
    figures.received.append(items)
    request = {"n": ITEMS, "delay": DELAY}
    limits = {"timeout": 110.0, "deadline": 115.0}
    async with requester.generate(str(endpoint), request, **limits) as stream:
        async for item in stream:
            now = time.monotonic()
            if last:
                figures.longest_gap = max(figures.longest_gap, now - last)
            last = now
            items.append(item["i"])
    figures.interruptions += stream.interruptions
    figures.resumed += stream.interruptions > 0


async def all_streams(
    requester: Requester, endpoint: Endpoint, trouble: Callable[[], Awaitable[None]]
) -> Figures:
    """Receive every stream while ``trouble`` goes on again and again."""
    figures = Figures()

    async def make_trouble() -> None:
        while True:
            await trouble()

    troubling = asyncio.create_task(make_trouble())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(one_stream(requester, endpoint, figures))
    finally:
        troubling.cancel()
        with suppress(asyncio.CancelledError):
            await troubling
    return figures


async def every_item_once(server: EmbeddedServer, endpoint: Endpoint, figures: Figures) -> None:
    assert len(figures.received) == STREAMS
    assert all(items == WHOLE for items in figures.received)
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

        figures = await all_streams(requester, endpoint, kill)
        figures.show(f"SIGKILL, {engine}", workers)
        assert workers.kills
        assert figures.interruptions
        await every_item_once(own_server, endpoint, figures)


async def test_streams_survive_zombies(
    own_server: EmbeddedServer, requester: Requester, endpoint: Endpoint
) -> None:
    async with fleet(
        WORKERS, "examples.resumable:continuing", endpoint, own_server.url, **SETTINGS
    ) as workers:
        figures = await all_streams(requester, endpoint, lambda: workers.freeze_one(2 * LEASE))
        figures.show("SIGSTOP for two leases, SIGCONT", workers)
        assert workers.zombies
        await every_item_once(own_server, endpoint, figures)


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

        figures = await all_streams(requester, endpoint, restart)
        figures.show(f"broker killed {restarts} times", workers)
        assert restarts
        await every_item_once(own_server, endpoint, figures)


async def test_streams_survive_a_rolling_drain_of_all_workers(
    own_server: EmbeddedServer, requester: Requester, endpoint: Endpoint
) -> None:
    async with fleet(
        WORKERS, "examples.resumable:continuing", endpoint, own_server.url, **SETTINGS
    ) as workers:
        figures = await all_streams(requester, endpoint, workers.drain_one)
        figures.show("rolling drain", workers)
        assert len(workers.drained) >= WORKERS
        assert set(workers.drained) == {0}
        await every_item_once(own_server, endpoint, figures)
