"""Pulling goes on after the server was killed, or stood still, with messages on their way."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from dialback.metrics.names import PullErrorKind
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress
from dialback.queue.delivery import ACK
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.pull_settings import PullEvents, PullSettings
from dialback.queue.topology import Endpoint, Lane
from support.eventually import eventually
from support.queue_rig import Taken, nothing_left, provision, pulling, put

pytestmark = pytest.mark.integration

SLOTS = 4


class Busy:
    """A puller whose messages are acknowledged, and whose queue gets more and more of them."""

    def __init__(self, client: QueueClient, endpoint: Endpoint) -> None:
        self.client = client
        self.taken = Taken(slots=SLOTS)
        self.failures: list[PullErrorKind] = []
        self.slots_changed: Callable[[], None] = lambda: None
        self._done = 0
        self._endpoint = endpoint
        self._put = 0

    async def put(self, count: int) -> None:
        """Store so many messages, over all lanes."""
        for _ in range(count):
            lane = list(Lane)[self._put % 3]
            await put(self.client, self._endpoint, f"r{self._put}", lane=lane)
            self._put += 1

    async def work(self) -> None:
        """Acknowledge what comes, until every message that was put has come."""
        while len(set(self.taken.tokens)) < self._put or self._done < len(self.taken.messages):
            await self.taken.until(self._done + 1)
            message, _ = self.taken.messages[self._done]
            await self.client.settler.confirm(message, ACK)
            self._done += 1
            self.taken.busy -= 1
            self.slots_changed()

    def assert_each_came(self, *, crashes: int = 0) -> None:
        """Each came; only what was in flight at a crash may have come twice."""
        came = Counter(self.taken.tokens)
        assert sorted(came) == sorted(f"r{number}" for number in range(self._put))
        assert sum(count - 1 for count in came.values()) <= SLOTS * crashes


@asynccontextmanager
async def busy(
    server: EmbeddedServer, endpoint: Endpoint, settings: PullSettings
) -> AsyncGenerator[Busy]:
    resets: list[Callable[[], None]] = []

    def reset() -> None:
        for one in resets:
            one()

    client = await QueueClient.open(
        ServerAddress(url=server.url),
        name="t",
        role="tests",
        events=ConnectionEvents(reconnected=reset),
    )
    await provision(client, endpoint)
    rig = Busy(client, endpoint)
    async with pulling(
        client.connection,
        rig.taken,
        stream=endpoint.stream,
        settings=settings,
        events=PullEvents(failed=rig.failures.append),
    ) as puller:
        rig.slots_changed = puller.slots_changed
        resets.append(puller.reset)
        yield rig
        await nothing_left(client, endpoint)
    await client.close()


async def test_after_each_crash_of_the_server_every_message_comes(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with busy(own_server, endpoint, PullSettings()) as rig:
        for _ in range(3):
            await rig.put(30)
            working = asyncio.create_task(rig.work())
            await rig.taken.until(len(rig.taken.messages) + 10)
            await own_server.kill()
            await own_server.start()
            await rig.put(30)
            await working
            await rig.work()
        rig.assert_each_came(crashes=3)
    assert rig.failures.count(PullErrorKind.RECONNECTED) == 3


async def test_after_a_standstill_of_the_server_every_message_comes(
    own_server: EmbeddedServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.queue.probing._PROBE_TIMEOUT", 0.2)
    quick = PullSettings(heartbeat=0.3, expires=5)
    async with busy(own_server, endpoint, quick) as rig:
        for _ in range(3):
            await rig.put(10)
            await rig.work()
            os.kill(own_server.pid, signal.SIGSTOP)
            rig.failures.clear()

            async def noticed() -> bool:
                return PullErrorKind.MISSED_HEARTBEATS in rig.failures

            try:
                await eventually(noticed)
            finally:
                os.kill(own_server.pid, signal.SIGCONT)
            await rig.put(10)
            await rig.work()
        rig.assert_each_came()
