import asyncio

import nats.errors
import pytest

from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.replies import ConnectionLostError, Replies
from support.queue_rig import LIMIT

pytestmark = pytest.mark.integration

INFO = "$JS.API.INFO"


async def test_many_questions_at_once_are_answered(queue_client: QueueClient) -> None:
    replies = Replies(queue_client.connection)
    answers = await asyncio.gather(*(replies.ask(INFO, b"", timeout=LIMIT) for _ in range(200)))
    assert all(b"account_info_response" in answer for answer in answers)


async def test_nobody_listens_to_the_subject(queue_client: QueueClient) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await Replies(queue_client.connection).ask("nobody.here", b"", timeout=LIMIT)


async def test_the_inbox_survives_a_reconnect_and_what_waits_is_failed(
    own_server: EmbeddedServer,
) -> None:
    gone, back = asyncio.Event(), asyncio.Event()
    client = await QueueClient.open(
        ServerAddress(url=own_server.url),
        name="t",
        role="tests",
        events=ConnectionEvents(disconnected=gone.set, reconnected=back.set),
    )
    replies = Replies(client.connection)
    await client.connection.subscribe("silent")  # pyright: ignore[reportUnknownMemberType]
    await replies.ask(INFO, b"", timeout=LIMIT)
    waiting = asyncio.create_task(replies.ask("silent", b"", timeout=3600.0))
    await client.connection.flush()
    await own_server.kill()
    async with asyncio.timeout(LIMIT):
        await gone.wait()
        replies.connection_lost()
        with pytest.raises(ConnectionLostError):
            await waiting
        await own_server.start()
        await back.wait()
        assert b"account_info_response" in await replies.ask(INFO, b"", timeout=LIMIT)
    await client.close()
    with pytest.raises(nats.errors.ConnectionClosedError):
        await replies.ask(INFO, b"", timeout=LIMIT)
