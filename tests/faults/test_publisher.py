"""Publishing while a cluster has no leader: known outcomes only, each message stored once.

Source: jetstream sections 2.3, 2.4 and 5.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from dialback.errors import StreamMissingError
from dialback.outcomes import Delivery, Finished, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters
from dialback.queue.publisher import MESSAGE_ID_HEADER
from dialback.queue.topology import Endpoint, Lane
from support import figures
from support.cluster import Cluster
from support.queue_rig import provision, put, stored

PUBLISHES = 500


@pytest.fixture
async def cluster() -> AsyncGenerator[Cluster]:
    """Three nodes for one test."""
    async with Cluster() as started:
        yield started


async def client_of(cluster: Cluster) -> QueueClient:
    return await QueueClient.open(ServerAddress(url=cluster.url), name="t", role="requester")


async def test_publishes_in_an_election_are_stored_once_each(
    cluster: Cluster, endpoint: Endpoint
) -> None:
    await provision(cluster.client, endpoint, replicas=3)
    client = await client_of(cluster)
    leader = await cluster.stream_leader(endpoint.stream)
    async with asyncio.TaskGroup() as tasks:
        publishes = [
            tasks.create_task(put(client, endpoint, f"r{i}", headers={MESSAGE_ID_HEADER: f"m{i}"}))
            for i in range(PUBLISHES)
        ]
        await asyncio.wait(publishes[:1])
        await cluster.kill(leader)
        begun = time.monotonic()
    figures.record(
        fault="kill -9 of the stream leader under 500 publishes",
        submitted=PUBLISHES,
        repeated=sum(publish.result().attempts > 1 for publish in publishes),
        duration=time.monotonic() - begun,
    )
    await cluster.restart(leader)
    assert len({publish.result().sequence for publish in publishes}) == PUBLISHES
    await cluster.stream_leader(endpoint.stream)
    assert await stored(cluster.client, endpoint.stream) == PUBLISHES
    await client.close()


async def test_a_stream_that_is_missing_is_told_from_one_without_a_leader(
    cluster: Cluster, endpoint: Endpoint
) -> None:
    client = await client_of(cluster)
    with pytest.raises(StreamMissingError):
        await put(client, endpoint, "r1")
    await provision(cluster.client, endpoint, replicas=3)
    await cluster.kill(await cluster.stream_leader(endpoint.stream))
    await put(client, endpoint, "r1", headers={MESSAGE_ID_HEADER: "m1"})
    await client.close()


async def test_dead_letters_in_an_election_are_stored_once_each(
    cluster: Cluster, endpoint: Endpoint
) -> None:
    await provision(cluster.client, endpoint, replicas=3)
    client = await client_of(cluster)
    letters = DeadLetters(client.api, client.publisher, endpoint)
    leader = await cluster.stream_leader(endpoint.dead_stream)
    async with asyncio.TaskGroup() as tasks:
        writes = [tasks.create_task(letters.write(record(endpoint, i))) for i in range(1, 101)]
        await asyncio.wait(writes[:1])
        await cluster.kill(leader)
    await cluster.restart(leader)
    await cluster.stream_leader(endpoint.dead_stream)
    await letters.write(record(endpoint, 1))
    assert await stored(cluster.client, endpoint.dead_stream) == 100
    await client.close()


def record(endpoint: Endpoint, sequence: int) -> DeadLetterRecord:
    """The letter of a request that could not be read."""
    delivery = Delivery(
        payload=b"payload",
        subject=endpoint.request_subject(Lane.NORMAL, f"r{sequence}"),
        stream=endpoint.stream,
        sequence=sequence,
        published_ns=1_700_000_000_000_000_000 + sequence,
    )
    ending = Finished(outcome=Outcome.INVALID, request_id=f"r{sequence}", reason="not readable")
    return DeadLetterRecord.of(ending, delivery, "worker")
