import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.aio.client import Client

from dialback import Context, Settings, Worker, WorkerExit
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress, connect
from dialback.queue.delivery import ACK
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.lease import LeaseKeeper
from dialback.queue.topology import Endpoint
from support.eventually import eventually
from support.queue_rig import LIMIT, lane_state, nothing_left, provision, put, take

pytestmark = pytest.mark.integration


class Lost:
    """Notes on which thread a lease was lost, and when it is told."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.threads: list[int] = []

    def __call__(self) -> None:
        self.threads.append(threading.get_ident())
        self.event.set()

    async def wait(self) -> None:
        async with asyncio.timeout(LIMIT):
            await self.event.wait()


async def echo(request: Any, context: Context) -> AsyncIterator[Any]:
    yield request


@asynccontextmanager
async def keeping(url: str, **options: Any) -> AsyncGenerator[LeaseKeeper]:
    keeper = LeaseKeeper(ServerAddress(url=url), name="t", ack_wait=1.0, **options)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


async def test_a_message_is_kept_while_the_event_loop_is_blocked(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, ack_wait=1.0)
    await put(queue_client, endpoint, "r1")
    lost = Lost()
    async with keeping(nats_server.url) as keeper:
        message, _ = await take(queue_client, endpoint)
        keeper.loop_turned()
        lease = keeper.add(message.reply, lost)
        time.sleep(3.5)  # noqa: ASYNC251 -- what an engine must not do, and does
        state = await lane_state(queue_client, endpoint)
        assert (state["num_ack_pending"], state["num_redelivered"]) == (1, 0)
        assert state["delivered"]["consumer_seq"] == 1
        await queue_client.settler.confirm(message, ACK)
        keeper.remove(lease)
        assert (lease.lost, lost.threads) == (False, [])
    await nothing_left(queue_client, endpoint)


async def test_a_removed_lease_is_not_renewed(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, ack_wait=1.0)
    await put(queue_client, endpoint, "r1")
    lost = Lost()
    async with keeping(nats_server.url) as keeper:
        message, _ = await take(queue_client, endpoint)
        keeper.remove(keeper.add(message.reply, lost))
        _, info = await take(queue_client, endpoint)
        assert info.number == 2
    assert lost.threads == []


async def test_a_lease_that_the_server_does_not_confirm_is_lost(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="tests")
    await provision(client, endpoint, ack_wait=1.0)
    await put(client, endpoint, "r1")
    lost, late = Lost(), threading.Event()
    async with keeping(own_server.url, on_late=late.set) as keeper:
        message, _ = await take(client, endpoint)
        lease = keeper.add(message.reply, lost)
        await own_server.kill()
        await lost.wait()
        assert (lease.lost, len(keeper)) == (True, 0)
        assert lost.threads == [threading.get_ident()]
        assert late.is_set()
        await own_server.start()
        _, info = await take(client, endpoint)  # so it is not renewed
        assert info.sequence == 1
    assert lost.threads == [threading.get_ident()]
    await client.close()


async def test_an_event_loop_that_stands_still_too_long_loses_its_leases(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, ack_wait=1.0)
    await put(queue_client, endpoint, "r1")
    lost = Lost()
    async with keeping(nats_server.url, stuck_limit=0.5) as keeper:
        keeper.loop_turned()
        message, _ = await take(queue_client, endpoint)
        lease = keeper.add(message.reply, lost)
        await lost.wait()  # nobody says that the loop turns
        assert lease.lost
        _, info = await take(queue_client, endpoint)
        assert info.number == 2


async def test_an_event_loop_that_turns_keeps_its_leases(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, ack_wait=1.0)
    await put(queue_client, endpoint, "r1")
    async with keeping(nats_server.url, stuck_limit=30.0) as keeper:
        message, _ = await take(queue_client, endpoint)
        keeper.loop_turned()
        lease = keeper.add(message.reply, Lost())
        first = lease.confirmed
        for _ in range(4):
            keeper.loop_turned()
            await eventually_confirmed(lease.confirmed, lambda: lease.confirmed)
        assert lease.confirmed > first
        assert not lease.lost
    await queue_client.settler.confirm(message, ACK)


async def eventually_confirmed(before: float, now: Callable[[], float]) -> None:
    """Wait for one more confirmed renewal."""

    async def confirmed() -> float:
        return now()

    await eventually(confirmed, lambda value: value > before)


class Reported:
    """A supervisor's table: what is held, and since when."""

    def __init__(self) -> None:
        self.leases: dict[str, float] = {}

    def held(self, reply: str, confirmed: float) -> None:
        self.leases[reply] = confirmed

    def released(self, reply: str) -> None:
        del self.leases[reply]


async def test_each_confirmation_is_reported_and_a_lost_lease_is_released(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="tests")
    await provision(client, endpoint, ack_wait=1.0)
    await put(client, endpoint, "r1")
    lost, report = Lost(), Reported()
    async with keeping(own_server.url, report=report) as keeper:
        message, _ = await take(client, endpoint)
        keeper.loop_turned()
        lease = keeper.add(message.reply, lost)
        first = report.leases[message.reply]
        await eventually_confirmed(first, lambda: report.leases[message.reply])
        await own_server.kill()
        await lost.wait()
        assert (lease.lost, report.leases) == (True, {})
    await client.close()


async def test_stopping_ends_the_thread(nats_server: EmbeddedServer) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "dialback-leases"]

    async with keeping(nats_server.url):
        assert threads() == ["dialback-leases"]
    assert threads() == []


async def test_a_worker_told_to_end_while_its_leases_connect_leaves_no_thread(
    nats_server: EmbeddedServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = threading.Event()

    async def hangs(*_: object, **__: object) -> Client:
        connecting.set()
        return await asyncio.Future[Client]()

    monkeypatch.setattr("dialback.queue.lease.connect", hangs)
    settings = Settings.load(server=nats_server.url, status_port=-1)
    worker = Worker(echo, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    await asyncio.to_thread(connecting.wait, LIMIT)
    worker.stop()
    assert await running is WorkerExit.CLEAN
    assert "dialback-leases" not in [t.name for t in threading.enumerate()]


async def test_stopping_without_a_server_ends_the_thread_too(own_server: EmbeddedServer) -> None:
    lost = Lost()
    async with keeping(own_server.url) as keeper:
        keeper.add("$JS.ACK.S.c.1.1.1.1.0", lost)
        await own_server.kill()
        await lost.wait()
    assert "dialback-leases" not in [t.name for t in threading.enumerate()]


async def test_a_connection_that_closes_for_good_is_told_on_the_worker_s_loop(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Client, asyncio.AbstractEventLoop]] = []

    async def noting(*args: Any, **options: Any) -> Client:
        client = await connect(*args, **options)
        opened.append((client, asyncio.get_running_loop()))
        return client

    monkeypatch.setattr("dialback.queue.lease.connect", noting)
    closed = Lost()
    async with keeping(nats_server.url, on_closed=closed):
        ((client, loop),) = opened
        asyncio.run_coroutine_threadsafe(client.close(), loop)
        await closed.wait()
    assert closed.threads == [threading.get_ident()]


async def test_stopping_is_no_closed_connection(nats_server: EmbeddedServer) -> None:
    closed = Lost()
    async with keeping(nats_server.url, on_closed=closed):
        pass
    await asyncio.sleep(0)
    assert closed.threads == []
