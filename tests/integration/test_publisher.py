import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dialback.errors import (
    PayloadTooLargeError,
    QueueFullError,
    ServerUnavailableError,
    StreamMissingError,
)
from dialback.queue.api import WrongLastSequenceError
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.publisher import (
    EXPECTED_SUBJECT_SEQUENCE_HEADER,
    MESSAGE_ID_HEADER,
    Publisher,
)
from dialback.queue.topology import Endpoint, Lane, QueueSettings, requests_stream
from support.eventually import eventually
from support.queue_rig import LIMIT, provision, put, stored

pytestmark = pytest.mark.integration


async def test_a_stored_message_is_acknowledged_with_its_sequence(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    ack = await put(queue_client, endpoint, "r1", payload=b"body", headers={"A": "Wörter"})
    assert (ack.stream, ack.sequence, ack.duplicate) == (endpoint.stream, 1, False)
    message = await queue_client.api.get_exact(endpoint.stream, 1)
    assert (message.payload, message.headers) == (b"body", {"A": "Wörter"})
    assert message.subject == endpoint.request_subject(Lane.NORMAL, "r1")


async def test_a_subject_that_no_stream_takes(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    with pytest.raises(StreamMissingError, match=str(endpoint)):
        await put(queue_client, endpoint, "r1")


_MAY_ONLY_PUBLISH = """
authorization { users: [
  { user: admin, password: a }
  { user: caller, password: c, permissions: {
      publish: "dialback.*.*.*.jobs.>", subscribe: "_INBOX.requester.>" } }
] }
"""


async def test_a_caller_needs_no_right_but_to_publish(tmp_path: Path, endpoint: Endpoint) -> None:
    config = tmp_path / "conf"
    config.write_text(_MAY_ONLY_PUBLISH)
    async with EmbeddedServer(arguments=["-c", str(config)]) as server:
        admin, caller = [
            await QueueClient.open(
                ServerAddress(url=server.url, user=user, password=user[0]), name="t", role=role
            )
            for user, role in (("admin", "operator"), ("caller", "requester"))
        ]
        subject = endpoint.request_subject(Lane.NORMAL, "r1")
        with pytest.raises(ServerUnavailableError) as raised:
            await caller.publisher.publish(subject, b"x", {}, retry=False)
        for words in ("no stream takes", "no leader", "no permission"):
            assert words in str(raised.value)
        await provision(admin, endpoint)
        assert (await put(caller, endpoint, "r1")).sequence == 1
        for client in (admin, caller):
            await client.close()


async def test_a_full_queue_refuses_and_stores_nothing(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, max_messages=2)
    for token in ("r1", "r2"):
        await put(queue_client, endpoint, token)
    with pytest.raises(QueueFullError, match="maximum messages exceeded"):
        await put(queue_client, endpoint, "r3")
    assert await stored(queue_client, endpoint.stream) == 2


@pytest.mark.parametrize("headers", [{}, {"Name": "Wörter ☃" * 20}])
async def test_the_largest_payload_is_the_server_s_own_limit(
    queue_client: QueueClient, endpoint: Endpoint, headers: dict[str, str]
) -> None:
    await provision(queue_client, endpoint)
    limit = queue_client.connection.max_payload
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    await put(queue_client, endpoint, "r1", payload=bytes(limit - len(block)), headers=headers)
    with pytest.raises(PayloadTooLargeError) as raised:
        await put(
            queue_client, endpoint, "r2", payload=bytes(limit - len(block) + 1), headers=headers
        )
    assert raised.value.limit == limit
    assert "max_payload" in str(raised.value)
    assert await stored(queue_client, endpoint.stream) == 1
    assert queue_client.connection.is_connected


async def test_a_payload_over_the_stream_s_limit(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    config: dict[str, Any] = requests_stream(endpoint, QueueSettings()) | {"max_msg_size": 1000}
    await queue_client.api.create_stream(config)
    with pytest.raises(PayloadTooLargeError, match="max_msg_size") as raised:
        await put(queue_client, endpoint, "r1", payload=bytes(2000))
    assert (raised.value.size, raised.value.limit) == (2000, 0)
    assert await stored(queue_client, endpoint.stream) == 0


async def test_the_same_id_is_stored_once(queue_client: QueueClient, endpoint: Endpoint) -> None:
    await provision(queue_client, endpoint)
    acks = [
        await put(queue_client, endpoint, "r1", headers={MESSAGE_ID_HEADER: "m1"}) for _ in range(3)
    ]
    assert [ack.duplicate for ack in acks] == [False, True, True]
    assert {ack.sequence for ack in acks} == {1}
    assert await stored(queue_client, endpoint.stream) == 1


async def test_an_expected_sequence_that_is_not_the_last(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    expect_none = {EXPECTED_SUBJECT_SEQUENCE_HEADER: "0"}
    await put(queue_client, endpoint, "r1", headers=expect_none)
    with pytest.raises(WrongLastSequenceError):
        await put(queue_client, endpoint, "r1", headers=expect_none)
    await put(queue_client, endpoint, "r2", headers=expect_none)
    assert await stored(queue_client, endpoint.stream) == 2


async def test_a_publish_waits_for_the_server_to_come_back_and_is_stored_once(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    gone = asyncio.Event()
    client = await QueueClient.open(
        ServerAddress(url=own_server.url),
        name="t",
        role="tests",
        events=ConnectionEvents(disconnected=gone.set),
    )
    await provision(client, endpoint)
    await put(client, endpoint, "r1", headers={MESSAGE_ID_HEADER: "m1"})
    await own_server.kill()
    await gone.wait()
    again = asyncio.create_task(put(client, endpoint, "r1", headers={MESSAGE_ID_HEADER: "m1"}))
    other = asyncio.create_task(put(client, endpoint, "r2", headers={MESSAGE_ID_HEADER: "m2"}))
    await own_server.start()
    async with asyncio.timeout(LIMIT):
        assert (await again).duplicate
        assert not (await other).duplicate
    assert await stored(client, endpoint.stream) == 2
    await client.close()


async def test_what_was_sent_while_the_server_stood_still_is_stored_once(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="tests")
    await provision(client, endpoint)
    publisher = Publisher(client.connection, timeout=0.05)
    subject = endpoint.request_subject(Lane.NORMAL, "r1")
    os.kill(own_server.pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, own_server.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        sent = client.connection.stats["out_msgs"]
        publishing = asyncio.create_task(
            publisher.publish(subject, b"x", {MESSAGE_ID_HEADER: "m1"})
        )

        async def attempts() -> int:
            return client.connection.stats["out_msgs"] - sent

        await eventually(attempts, lambda count: count >= 3)
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    async with asyncio.timeout(LIMIT):
        assert (await publishing).sequence == 1
    assert await stored(client, endpoint.stream) == 1
    await client.close()
