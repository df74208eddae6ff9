import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.orphans import Orphans
from dialback.queue.topology import Endpoint
from support.queue_rig import LIMIT, lane_state, provision, put, take

pytestmark = pytest.mark.integration


@asynccontextmanager
async def orphans(url: str, *, within: float = 5.0) -> AsyncGenerator[Orphans]:
    keeper = Orphans(ServerAddress(url=url), name="t", within=within)
    running = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_message_that_is_handed_back_is_redelivered_long_before_its_lease_ends(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, ack_wait=3600.0)
    await put(queue_client, endpoint, "r1")
    message, _ = await take(queue_client, endpoint)
    async with orphans(nats_server.url) as keeper:  # it waits for the connection
        assert await keeper.hand_back(message.reply, time.monotonic() + LIMIT)
        _, info = await take(queue_client, endpoint)
    assert info.number == 2


async def test_after_the_lease_nothing_is_sent(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, ack_wait=3600.0)
    await put(queue_client, endpoint, "r1")
    message, _ = await take(queue_client, endpoint)
    async with orphans(nats_server.url) as keeper:
        assert not await keeper.hand_back(message.reply, time.monotonic())
    state = await lane_state(queue_client, endpoint)
    assert (state["num_ack_pending"], state["num_redelivered"]) == (1, 0)


async def test_without_a_server_the_lease_decides(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = own_server.url
    await own_server.kill()
    async with orphans(url, within=0.1) as keeper:
        assert not await keeper.hand_back("$JS.ACK.S.c.1.1.1.1.0", time.monotonic() + 1.0)
    assert "come again only when their lease ends" in caplog.text


async def test_a_server_that_comes_back_gets_the_message_back(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    async with EmbeddedServer(store=tmp_path) as server:
        client = await QueueClient.open(ServerAddress(url=server.url), name="t", role="tests")
        await provision(client, endpoint, ack_wait=3600.0)
        await put(client, endpoint, "r1")
        message, _ = await take(client, endpoint)
        async with orphans(server.url) as keeper:
            await server.stop()  # in good order: a killed one forgets what it has delivered
            end = time.monotonic() + LIMIT
            handing = asyncio.create_task(keeper.hand_back(message.reply, end))
            await server.start()
            assert await handing
            _, info = await take(client, endpoint)
        assert info.number == 2
        await client.close()
