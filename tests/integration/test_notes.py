"""Crashes, attempts and hand-backs told apart on a real queue."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dialback import Context, Requester, Settings, Worker
from dialback.errors import ConfigMismatchError, ResponseError, ServerUnavailableError
from dialback.outcomes import Delivery, Ending, Finished, HandedBack, Outcome, Revoked, Superseded
from dialback.queue.api import JetStreamApi
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.delivery import NAK
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.inspection import RequeueStatus
from dialback.queue.inspector import Inspector
from dialback.queue.note import NOTES_STREAM, Note, Stored, note_key, notes_stream
from dialback.queue.notes import Notes
from dialback.queue.topology import Endpoint, QueueSettings, Topology
from support.consumer_rig import always, consuming
from support.queue_rig import LIMIT, nothing_left, provision, put, stored, take

pytestmark = pytest.mark.integration

MAX_CRASHES = 3


def seen(deliveries: list[Delivery]) -> list[tuple[int, int, int]]:
    """Number, attempts and crashes of each delivery."""
    return [(d.number, d.attempts, d.crashes) for d in deliveries]


async def given_up_or_completed(delivery: Delivery) -> Ending:
    """As the ingress decides, without a requester."""
    poison = delivery.crashes >= MAX_CRASHES
    outcome = Outcome.POISON if poison else Outcome.COMPLETED
    return Finished(outcome=outcome, request_id="r1", reason="why")


async def until_drained(delivery: Delivery) -> Ending:
    """As a request whose requester is being dialled when the worker ends."""
    if await delivery.revocation.wait() is Revoked.SHUTDOWN:
        return HandedBack(request_id="r1", reason="shutdown before the handshake")
    return Superseded(request_id="r1", reason="lease lost")


async def vanish(client: QueueClient, endpoint: Endpoint, times: int) -> None:
    """Take a message so many times, each time as a worker that dies with it."""
    for number in range(1, times + 1):
        _, info = await take(client, endpoint)
        assert info.number == number


async def test_ten_workers_that_drain_are_no_crash_and_the_eleventh_completes(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "r1")
    deliveries: list[Delivery] = []
    for _ in range(10):
        async with consuming(nats_server.url, queue_client, endpoint, ack_wait=30.0) as rig:
            rig.handle = until_drained
            await rig.until_busy(1)
            rig.consumer.puller.stop()
            hurry = asyncio.Event()
            hurry.set()
            await rig.consumer.drain(LIMIT, reserve=LIMIT, hurry=hurry)
            deliveries += rig.deliveries
    async with consuming(nats_server.url, queue_client, endpoint, ack_wait=30.0) as rig:
        rig.handle = given_up_or_completed
        await rig.until_counted(completed=1, settled=1)
        deliveries += rig.deliveries
    assert seen(deliveries) == [(number, 0, 0) for number in range(1, 12)]
    await nothing_left(queue_client, endpoint)


async def test_attempts_are_counted_apart_from_hand_backs_and_crashes(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async def handle(delivery: Delivery) -> Ending:
        if delivery.number in {2, 4}:
            return HandedBack(request_id="r1", reason="drain")
        return await always(Outcome.REQUESTER_UNREACHABLE)(delivery)

    await provision(queue_client, endpoint, ack_wait=1.0)
    await put(queue_client, endpoint, "r1")
    await vanish(queue_client, endpoint, 1)
    async with consuming(nats_server.url, queue_client, endpoint) as rig:
        rig.handle = handle
        await rig.until_counted(requester_unreachable=1, settled=1, retried=2, handed_back=2)
        assert seen(rig.deliveries) == [(2, 0, 1), (3, 0, 1), (4, 1, 1), (5, 1, 1), (6, 2, 1)]
    await nothing_left(queue_client, endpoint)


async def test_a_message_that_three_workers_died_with_is_one_dead_letter_and_its_caller_is_told(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async def engine(request: Any, context: Context) -> Any:
        raise AssertionError("it is not called")
        yield

    settings = Settings.load(server=nats_server.url, status_port=-1, ack_wait=1.0)
    await provision(queue_client, endpoint, ack_wait=1.0)
    async with Requester(settings) as requester:

        async def ask() -> list[Any]:
            async with requester.generate(str(endpoint), 1, request_id="r1") as stream:
                return [item async for item in stream]

        asking = asyncio.create_task(ask())
        await vanish(queue_client, endpoint, MAX_CRASHES)
        worker = Worker(engine, endpoint=str(endpoint), settings=settings)
        running = asyncio.create_task(worker.run(signals=False))
        with pytest.raises(ResponseError) as raised:
            await asking
        worker.stop()
        await running
    said = raised.value.message
    assert said.startswith("given up: 3 workers died while they had it")
    await nothing_left(queue_client, endpoint)
    assert await stored(queue_client, endpoint.dead_stream) == 1
    letter = await queue_client.api.get_message(endpoint.dead_stream)
    assert letter.headers["Dialback-Outcome"] == "poison"
    assert letter.headers["Dialback-Reason"] == said


async def test_a_requeued_dead_letter_starts_at_zero(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint, ack_wait=1.0)
    await put(queue_client, endpoint, "r1")
    await vanish(queue_client, endpoint, MAX_CRASHES)
    async with consuming(nats_server.url, queue_client, endpoint) as rig:
        rig.handle = given_up_or_completed
        await rig.until_counted(poison=1, settled=1)
        letter = await queue_client.api.get_message(endpoint.dead_stream)
        result = await Inspector(queue_client).requeue(endpoint, letter.sequence)
        assert result.status is RequeueStatus.REQUEUED
        await rig.until_counted(poison=1, completed=1, settled=2)
        assert [(d.attempts, d.crashes) for d in rig.deliveries] == [(0, 3), (0, 0)]
        assert rig.deliveries[1].number == 1
    await nothing_left(queue_client, endpoint)


async def test_with_a_new_consumer_numbers_begin_anew_and_old_notes_count_no_crash(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    recreated = asyncio.Event()

    async def handle(delivery: Delivery) -> Ending:
        if delivery.number == 3:
            await recreated.wait()
        if delivery.epoch == rig.deliveries[0].epoch:
            return HandedBack(request_id="r1", reason="not now")
        return await given_up_or_completed(delivery)

    async with consuming(nats_server.url, queue_client, endpoint, ack_wait=30.0) as rig:
        rig.handle = handle
        await put(queue_client, endpoint, "r1")
        await rig.until_counted(handed_back=2)
        await rig.until_busy(1)
        await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.normal")
        await provision(queue_client, endpoint)  # by another worker: this one must notice
        recreated.set()
        await rig.until_counted(completed=1, settled=1)
        assert seen(rig.deliveries) == [(1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 0, 0)]
        epochs = [delivery.epoch for delivery in rig.deliveries]
        assert epochs[0] == epochs[1] == epochs[2] < epochs[3]
    await nothing_left(queue_client, endpoint)


async def test_a_finished_note_prevents_a_second_run(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await put(queue_client, endpoint, "r1")
    notes = Notes(queue_client.connection, queue_client.publisher)
    message, info = await take(queue_client, endpoint)
    key = note_key(info.stream, info.sequence, info.published_ns)
    assert await notes.write(key, Note(finished=Outcome.COMPLETED))
    await queue_client.settler.confirm(message, NAK)
    async with consuming(nats_server.url, queue_client, endpoint, ack_wait=30.0) as rig:
        await rig.until_counted(completed=1, settled=1)
        assert rig.deliveries == []
    await nothing_left(queue_client, endpoint)


async def test_a_lease_lost_by_a_worker_that_lives_is_no_crash(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async def until_lost(delivery: Delivery) -> Ending:
        await delivery.revocation.wait()
        return Superseded(request_id="r1", reason="lease lost")

    async with consuming(
        nats_server.url, queue_client, endpoint, slots=1, pulse=LIMIT, stuck_limit=0.2
    ) as rig:
        rig.handle = until_lost
        await put(queue_client, endpoint, "r1")
        await rig.until_counted(superseded=1)
        first = rig.deliveries[0]
    key = note_key(first.stream, first.sequence, first.published_ns)
    stored_note = await Notes(queue_client.connection, queue_client.publisher).read(key)
    assert stored_note is not None
    assert 1 in stored_note.note.superseded
    async with consuming(nats_server.url, queue_client, endpoint) as other:
        other.handle = given_up_or_completed
        await other.until_counted(completed=1, settled=1)
        assert other.deliveries[-1].crashes == 0
    await nothing_left(queue_client, endpoint)


async def test_twenty_writers_at_once_lose_nothing(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    notes = Notes(queue_client.connection, queue_client.publisher, budget=LIMIT)
    key = note_key(endpoint.stream, 1, 99)
    assert await notes.read(key) == Stored()
    numbers = range(1, 21)
    writes = [notes.write(key, Note(handed_back=frozenset({number}))) for number in numbers]
    assert all(await asyncio.gather(*writes))
    found = await notes.read(key)
    assert found is not None
    assert found.note == Note(handed_back=frozenset(numbers))


async def test_a_bucket_that_was_deleted_is_created_again(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="tests")
    topology = Topology(client.api, endpoint, QueueSettings())
    await topology.ensure()
    notes = Notes(client.connection, client.publisher, restore=topology.ensure, budget=LIMIT)
    for act in (notes.read("JOBS.1-1"), notes.write("JOBS.1-1", Note(retried=frozenset({1})))):
        await client.api.request(f"STREAM.DELETE.{NOTES_STREAM}")
        assert await act
    assert await notes.read("JOBS.1-1") == Stored(Note(retried=frozenset({1})), 1)
    await client.close()


async def test_a_bucket_that_would_forget_notes_is_a_mismatch(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="tests")
    wrong = notes_stream(1) | {"subjects": ["$KV.dialback_notes.other"]}
    await client.api.create_stream(wrong)
    with pytest.raises(ConfigMismatchError, match=f"stream {NOTES_STREAM} exists with other"):
        await Topology(client.api, endpoint, QueueSettings()).ensure()
    await client.close()


async def test_a_worker_that_may_not_create_the_bucket_is_told_what_to_do(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    denied = f"$JS.API.STREAM.CREATE.{NOTES_STREAM}"
    config = tmp_path / "server.conf"
    config.write_text(
        'authorization: {users: [{user: "operator", password: "o"}, {user: "worker",'
        f' password: "w", permissions: {{publish: {{deny: "{denied}"}}}}}}]}}\n'
    )
    async with EmbeddedServer(arguments=["-c", str(config)]) as server:
        as_worker = ServerAddress(url=server.url, user="worker", password="w")  # noqa: S106
        client = await QueueClient.open(as_worker, name="t", role="worker")
        topology = Topology(JetStreamApi(client.connection, timeout=0.5), endpoint, QueueSettings())
        with pytest.raises(ServerUnavailableError) as raised:
            await topology.ensure()
        text = str(raised.value)
        assert text.startswith(
            "bucket dialback_notes: no answer to STREAM.CREATE.KV_dialback_notes"
        )
        assert "nats kv add dialback_notes --history=1 --ttl=30d --storage=file" in text
        await client.api.stream_info(endpoint.stream)  # its own streams it could create
        as_operator = ServerAddress(url=server.url, user="operator", password="o")  # noqa: S106
        operator = await QueueClient.open(as_operator, name="t", role="operator")
        await operator.api.create_stream(notes_stream(1))
        await operator.close()
        await topology.ensure()
        await client.close()
