"""The janitor as a process of its own: all queues, new ones too; its end; one pass for cron."""

import asyncio
import os
import signal
import sys

import orjson
import pytest

from dialback import Settings
from dialback.errors import QueueError
from dialback.janitor_service import JanitorService
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.cli import dialback_beside
from support.eventually import eventually
from support.janitor_rig import HOUR, PASSED, by, heard, request
from support.letters import request_of
from support.queue_rig import provision, put, stored
from support.scripted_requester import ScriptedRequester

pytestmark = pytest.mark.integration
ONE, TWO = Endpoint("test", "backend", "one"), Endpoint("test", "backend", "two")


async def _client(server: EmbeddedServer) -> QueueClient:
    return await QueueClient.open(ServerAddress(url=server.url), name="t", role="operator")


async def test_all_queues_are_looked_after_those_of_later_too(own_server: EmbeddedServer) -> None:
    client = await _client(own_server)
    settings = Settings.load(server=own_server.url, janitor_interval=0.05)
    service = JanitorService(settings=settings)
    running = asyncio.create_task(service.run(signals=False))
    async with ScriptedRequester() as requester:
        for endpoint in (ONE, TWO):
            await provision(client, endpoint)
            await put(client, endpoint, "r1", payload=request(requester), headers=by(PASSED))
            assert (await heard(requester))["class"] == "DeadlineExceeded"
            await _emptied(client, endpoint)
    service.stop()
    assert await running == 0
    await client.close()


async def test_a_janitor_goes_on_after_the_server_was_killed_and_restarted(
    own_server: EmbeddedServer,
) -> None:
    client = await _client(own_server)
    await provision(client, ONE)
    settings = Settings.load(server=own_server.url, janitor_interval=0.05)
    service = JanitorService([ONE], settings=settings)
    running = asyncio.create_task(service.run(signals=False))
    async with ScriptedRequester() as requester:
        for request_id in ("r1", "r2"):
            await put(client, ONE, request_id, payload=request(requester), headers=by(PASSED))
            await heard(requester)
            await _emptied(client, ONE)
            if request_id == "r1":
                await own_server.kill()
                await own_server.start()
                await eventually(lambda: _answers(client))
    service.stop()
    assert await running == 0
    await client.close()


async def _emptied(client: QueueClient, endpoint: Endpoint) -> None:
    await eventually(lambda: stored(client, endpoint.stream), lambda left: left == 0)


async def _answers(client: QueueClient) -> bool:
    try:
        await client.api.stream_info(ONE.stream)
    except QueueError:
        return False
    return True


async def test_one_pass_for_cron_ends_by_itself(own_server: EmbeddedServer) -> None:
    client = await _client(own_server)
    for endpoint in (ONE, TWO):
        await provision(client, endpoint)
        await put(client, endpoint, "r1", payload=request_of("r1"), headers=by(PASSED))
        await put(client, endpoint, "r2", payload=request_of("r2"), headers=by(HOUR))
    for _ in range(2):  # the second finds nothing, and the claim free
        ran = await dialback_beside("janitor", "--all", "--once", "-s", own_server.url)
        assert ran.exit_code == 0
        events = [orjson.loads(line) for line in ran.stderr.splitlines()]
        assert [e["message"] for e in events if "swept" in e["message"]] == ["queue swept"] * 2
        assert [e for e in events if e["level"] != "INFO"] == []  # its own end is no trouble
        assert [await stored(client, e.stream) for e in (ONE, TWO)] == [1, 1]
    await client.close()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "name the endpoints"),
        (("--all", "a.b.c"), 2, "not both: name endpoints, or give --all"),
        (("no",), 2, ""),
        (("no.such.queue", "--once"), 3, ""),
    ],
)
async def test_wrong_usage_and_a_missing_queue_have_their_exit_codes(
    arguments: tuple[str, ...], code: int, sentence: str, nats_server: EmbeddedServer
) -> None:
    ran = await dialback_beside("janitor", *arguments, "-s", nats_server.url)
    assert ran.exit_code == code
    assert f"error: {sentence}" in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_and_frees_the_claim(
    number: signal.Signals, own_server: EmbeddedServer
) -> None:
    client = await _client(own_server)
    await provision(client, ONE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dialback", "janitor", "--all"),
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ) | {"NATS_SERVER": own_server.url, "DIALBACK_LOG_FORMAT": "json"},
    )

    async def claims() -> int:
        names = await client.api.stream_names()
        return await stored(client, "KV_dialback_claims") if "KV_dialback_claims" in names else 0

    await eventually(claims, lambda count: count == 1)
    process.send_signal(number)
    _, log = await process.communicate()
    assert process.returncode == 0
    assert orjson.loads(log.splitlines()[-1])["message"] == "janitor ended"
    assert await claims() == 0
    await client.close()
