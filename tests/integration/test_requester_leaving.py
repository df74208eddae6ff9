"""Callers that leave before their request is acknowledged: it is removed, and no other one."""

import asyncio

import pytest

from dialback import Requester, Settings
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.queue_rig import provision

pytestmark = pytest.mark.integration

TURNS = 12
"""Turns of the event loop, within which a request is written to its connection."""


@pytest.fixture
def settings(nats_server: EmbeddedServer) -> Settings:
    return Settings.load(server=nats_server.url)


@pytest.fixture
async def queue(queue_client: QueueClient, endpoint: Endpoint) -> Endpoint:
    await provision(queue_client, endpoint)
    return endpoint


async def _leave_after(
    turns: int, requester: Requester, queue: Endpoint, request_id: str | None = None
) -> bool:
    """Enter a stream, and give up after some turns; return whether it was not entered by then."""
    stream = requester.generate(str(queue), {}, request_id=request_id)
    entering = asyncio.create_task(stream.__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    entering.cancel()
    await asyncio.wait({entering})
    if not entering.cancelled():
        await stream.__aexit__(None, None, None)
    return entering.cancelled()


async def test_a_request_whose_caller_leaves_at_any_moment_is_removed(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    async with Requester(settings) as requester:
        left = [await _leave_after(turns, requester, queue) for turns in range(TURNS)]
    state = (await queue_client.api.stream_info(queue.stream))["state"]
    assert any(left)
    assert state["last_seq"] > left.count(False)  # some that were left had been stored
    assert state["messages"] == 0


async def test_requests_that_wait_for_others_are_removed_or_never_sent(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    async with Requester(settings) as requester:
        await asyncio.gather(*(_leave_after(n % TURNS, requester, queue) for n in range(50)))
    assert (await queue_client.api.stream_info(queue.stream))["state"]["messages"] == 0


async def test_another_request_of_the_same_chosen_id_stays(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    async with Requester(settings) as theirs:
        async with theirs.generate(str(queue), {}, request_id="same"):
            async with Requester(settings) as ours:
                left = [await _leave_after(turns, ours, queue, "same") for turns in range(TURNS)]
            state = (await queue_client.api.stream_info(queue.stream))["state"]
    assert any(left)
    assert state["messages"] == 1


async def test_closing_does_not_wait_for_a_server_that_is_gone(
    own_server: EmbeddedServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.requester.WITHDRAWAL", 0.01)
    async with Requester(Settings.load(server=own_server.url)) as requester:
        entering = asyncio.create_task(requester.generate(str(endpoint), {}).__aenter__())
        await asyncio.sleep(0)
        await own_server.kill()
        entering.cancel()
        await asyncio.wait({entering})
    assert entering.cancelled()
