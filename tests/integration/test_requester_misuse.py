"""A requester in wrong hands says at once what is wrong, and keeps nothing open."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dialback import ConfigError, Requester, ServerUnavailableError, Settings
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.queue_rig import provision

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(nats_server: EmbeddedServer) -> Settings:
    return Settings.load(server=nats_server.url)


@pytest.fixture
async def queue(queue_client: QueueClient, endpoint: Endpoint) -> Endpoint:
    await provision(queue_client, endpoint)
    return endpoint


async def _in_another_loop(work: Coroutine[Any, Any, object]) -> None:
    await asyncio.to_thread(asyncio.run, work)


async def test_a_requester_is_of_no_use_in_another_event_loop(
    settings: Settings, queue: Endpoint
) -> None:
    async with Requester(settings) as requester:
        stream = requester.generate(str(queue), {}, timeout=1)
        for use in (stream.__aenter__, requester.start, requester.close):
            with pytest.raises(RuntimeError, match="another event loop; start one in each"):
                await _in_another_loop(use())
        async with stream:
            assert stream.end is None


async def test_a_requester_that_was_closed_may_start_in_another_event_loop(
    settings: Settings, queue: Endpoint
) -> None:
    requester = Requester(settings)

    async def ask() -> None:
        async with requester, requester.generate(str(queue), {}) as stream:
            assert stream.end is None

    await ask()
    await _in_another_loop(ask())


async def test_a_requester_is_started_once_at_a_time(settings: Settings) -> None:
    requester = Requester(settings)
    starting = [asyncio.create_task(requester.start()) for _ in range(2)]
    await asyncio.wait(starting)
    assert [str(task.exception()) for task in starting] == [
        "None",
        "the requester is started already",
    ]
    address = requester.address
    with pytest.raises(RuntimeError, match="started already"):
        await requester.start()
    assert requester.address == address
    await requester.close()
    await requester.start()
    await requester.close()


async def test_a_requester_that_could_not_start_may_try_again() -> None:
    requester = Requester(Settings.load(server="nats://127.0.0.1:1", connect_within=0.1))
    for _ in range(2):
        with pytest.raises(ServerUnavailableError):
            await requester.start()
    await requester.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"on_interruption": 5}, "on_interruption 5 cannot be called"),
        ({"keep_history": "yes"}, "keep_history 'yes' is no bool"),
        ({"headers": {"x": 5}}, "headers is a map of strings; 'x' is not"),
    ],
)
async def test_a_wrong_argument_is_refused(
    settings: Settings, queue: Endpoint, arguments: dict[str, Any], says: str
) -> None:
    async with Requester(settings) as requester:
        with pytest.raises(ConfigError, match=says):
            requester.generate(str(queue), {}, **arguments)
