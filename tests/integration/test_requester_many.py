"""Many callers over one requester: every request ends once, whatever the server does."""

import asyncio

import pytest

from dialback import Requester, Settings
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.eventually import eventually
from support.load import COMPLETED, Answers, Load, workers
from support.queue_rig import nothing_left, stored

pytestmark = pytest.mark.integration

CALLS = 500


async def _nothing_left(url: str, endpoint: Endpoint) -> None:
    client = await QueueClient.open(ServerAddress(url=url), name="tests", role="operator")
    await nothing_left(client, endpoint)
    assert await stored(client, endpoint.dead_stream) == 0
    await client.close()


async def _served(url: str, endpoint: Endpoint) -> None:
    """Wait until the endpoint's queue is there."""
    client = await QueueClient.open(ServerAddress(url=url), name="tests", role="operator")
    await eventually(client.api.stream_names, lambda names: endpoint.dead_stream in names)
    await client.close()


async def test_five_hundred_callers_share_a_requester(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    settings = Settings.load(server=nats_server.url, slots=32, status_port=-1)
    engine = Answers()
    async with workers(engine, str(endpoint), settings), Requester(settings) as requester:
        await _served(nats_server.url, endpoint)
        load = Load(requester, str(endpoint))
        await asyncio.gather(*(load.ask() for _ in range(CALLS)))
        assert load.outcomes == {COMPLETED: CALLS}
        assert engine.runs.total() == len(engine.runs) == CALLS
        await _nothing_left(nats_server.url, endpoint)


async def test_every_call_ends_once_when_the_server_is_killed_in_the_middle(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    settings = Settings.load(server=own_server.url, slots=32, status_port=-1)
    engine = Answers(pause=0.02)
    async with workers(engine, str(endpoint), settings), Requester(settings) as requester:
        await _served(own_server.url, endpoint)
        load = Load(requester, str(endpoint))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLS):
                tasks.create_task(load.ask())
            await load.ended(CALLS // 5)
            await own_server.kill()
            await own_server.start()
        assert load.outcomes == {COMPLETED: CALLS}
        await _nothing_left(own_server.url, endpoint)
