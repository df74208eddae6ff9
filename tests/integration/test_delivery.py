import asyncio
from pathlib import Path

import pytest

from dialback.errors import NotFoundError, ServerUnavailableError
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress
from dialback.queue.delivery import ACK, NAK, TERM, Settler, nak_body
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.eventually import eventually
from support.queue_rig import LIMIT, lane_state, nothing_left, provision, put, stored, take

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("body", [ACK, TERM, TERM + b" invalid"])
async def test_a_confirmed_answer_has_removed_the_message(
    queue_client: QueueClient, endpoint: Endpoint, body: bytes
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "r1")
    message, info = await take(queue_client, endpoint)
    assert (info.stream, info.consumer, info.number, info.sequence) == (
        (endpoint.stream, "normal", 1, 1)
    )
    await queue_client.settler.confirm(message, body)
    assert await stored(queue_client, endpoint.stream) == 0
    assert (await lane_state(queue_client, endpoint))["num_ack_pending"] == 0
    await queue_client.settler.confirm(message, body)  # harmless


@pytest.mark.parametrize("delay", [0.0, 0.05])
async def test_a_nak_brings_the_second_delivery(
    queue_client: QueueClient, endpoint: Endpoint, delay: float
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "r1")
    message, _ = await take(queue_client, endpoint)
    await queue_client.settler.confirm(message, nak_body(delay))
    again, info = await take(queue_client, endpoint)
    assert (info.number, info.sequence, again.data) == (2, 1, message.data)
    await queue_client.settler.confirm(again, ACK)
    await nothing_left(queue_client, endpoint)


@pytest.mark.parametrize("verb", ["CONSUMER.DELETE.{0}.normal", "STREAM.DELETE.{0}"])
async def test_a_message_whose_consumer_is_gone_is_given_up(
    queue_client: QueueClient, endpoint: Endpoint, verb: str
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "r1")
    message, _ = await take(queue_client, endpoint)
    await queue_client.api.request(verb.format(endpoint.stream))
    with pytest.raises(NotFoundError, match=f"consumer normal of stream {endpoint.stream} was"):
        await queue_client.settler.confirm(message, ACK)


@pytest.mark.parametrize(("body", "left"), [(ACK, 0), (TERM, 0), (NAK, 1)])
async def test_an_answer_waits_for_the_server_to_come_back(
    tmp_path: Path, endpoint: Endpoint, body: bytes, left: int
) -> None:
    gone = asyncio.Event()
    async with EmbeddedServer(store=tmp_path) as server:
        client = await QueueClient.open(
            ServerAddress(url=server.url),
            name="t",
            role="tests",
            events=ConnectionEvents(disconnected=gone.set),
        )
        await provision(client, endpoint)
        await put(client, endpoint, "r1")
        message, _ = await take(client, endpoint)
        await delivery_written(tmp_path)
        await server.kill()
        await gone.wait()
        confirming = asyncio.create_task(client.settler.confirm(message, body))
        await server.start()
        async with asyncio.timeout(LIMIT):
            await confirming
        assert await stored(client, endpoint.stream) == left
        if left:
            again, info = await take(client, endpoint)
            assert info.number == 2  # one NAK, however often it was tried
            await client.settler.confirm(again, ACK)
        await nothing_left(client, endpoint)
        await client.close()


async def delivery_written(store: Path) -> None:
    """Wait until a delivery is on disk: nats-server forgets it if killed before."""

    async def size() -> int:
        (state,) = await asyncio.to_thread(lambda: list(store.rglob("obs/normal/o.dat")))
        return (await asyncio.to_thread(state.stat)).st_size

    await eventually(size, lambda found: found > 8)


async def test_without_a_server_it_gives_up(own_server: EmbeddedServer, endpoint: Endpoint) -> None:
    gone = asyncio.Event()
    client = await QueueClient.open(
        ServerAddress(url=own_server.url),
        name="t",
        role="tests",
        events=ConnectionEvents(disconnected=gone.set),
    )
    await provision(client, endpoint)
    await put(client, endpoint, "r1")
    message, _ = await take(client, endpoint)
    await own_server.kill()
    await gone.wait()
    with pytest.raises(ServerUnavailableError, match="not connected"):
        await Settler(client.connection, give_up_after=0.2).confirm(message, ACK)
    await client.close()


@pytest.mark.parametrize("body", [ACK, TERM, NAK])
async def test_a_delivery_that_the_server_forgot_is_settled(
    queue_client: QueueClient, endpoint: Endpoint, body: bytes
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "r1")
    message, _ = await take(queue_client, endpoint)
    await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.normal")
    await provision(queue_client, endpoint)  # it begins anew, as after a crash
    await queue_client.settler.confirm(message, body)
    if body == NAK:
        again, info = await take(queue_client, endpoint)
        assert info.number == 1
        await queue_client.settler.confirm(again, ACK)
    await nothing_left(queue_client, endpoint)


async def test_a_delivery_that_the_server_forgot_may_be_settled_already(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "r1")
    await put(queue_client, endpoint, "r2")
    await take(queue_client, endpoint)
    message, info = await take(queue_client, endpoint)
    await queue_client.api.delete_message(endpoint.stream, info.sequence)
    await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.normal")
    await provision(queue_client, endpoint)
    await queue_client.settler.confirm(message, ACK)
    first, _ = await take(queue_client, endpoint)
    await queue_client.settler.confirm(first, ACK)
    await nothing_left(queue_client, endpoint)


@pytest.mark.parametrize(
    ("deleted", "sequence"),
    [([1], 1), ([2], 2), ([3], 3), ([], 1_000)],
    ids=["first", "inside", "last", "never stored"],
)
async def test_a_message_that_is_not_there_cannot_be_deleted(
    queue_client: QueueClient, endpoint: Endpoint, deleted: list[int], sequence: int
) -> None:
    await provision(queue_client, endpoint)
    for token in ("r1", "r2", "r3"):
        await put(queue_client, endpoint, token)
    for one in deleted:
        await queue_client.api.delete_message(endpoint.stream, one)
    with pytest.raises(NotFoundError):
        await queue_client.api.delete_message(endpoint.stream, sequence)
