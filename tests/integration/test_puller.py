import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson
import pytest
from nats.aio.msg import Msg

from dialback.metrics.names import PullErrorKind
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress
from dialback.queue.delivery import ACK, DeliveryInfo
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.pull_settings import PullEvents
from dialback.queue.puller import Puller
from dialback.queue.topology import Endpoint, Lane
from support.eventually import eventually
from support.queue_rig import (
    LANES,
    LIMIT,
    Taken,
    lane_state,
    nothing_left,
    provision,
    pulling,
    put,
    take,
)

pytestmark = pytest.mark.integration


@dataclass
class Failures:
    """Failed pulls, to be awaited."""

    kinds: list[PullErrorKind] = field(default_factory=list[PullErrorKind])

    @property
    def events(self) -> PullEvents:
        return PullEvents(failed=self.kinds.append)

    async def until(self, count: int) -> None:
        async def seen() -> int:
            return len(self.kinds)

        await eventually(seen, lambda found: found >= count)


async def waiting(client: QueueClient, endpoint: Endpoint, count: int) -> None:
    """Wait until each lane has so many pull requests."""

    async def pulls() -> list[int]:
        return [(await lane_state(client, endpoint, lane))["num_waiting"] for lane in Lane]

    await eventually(pulls, lambda found: found == [count] * 3)


@asynccontextmanager
async def spying(client: QueueClient, endpoint: Endpoint) -> AsyncGenerator[list[int]]:
    """Collect the batch of every pull for the endpoint."""
    batches: list[int] = []

    async def note(message: Msg) -> None:
        batches.append(orjson.loads(message.data)["batch"])

    subject = f"$JS.API.CONSUMER.MSG.NEXT.{endpoint.stream}.*"
    spy = await client.connection.subscribe(  # pyright: ignore[reportUnknownMemberType]
        subject, cb=note
    )
    await client.connection.flush()
    yield batches
    await client.connection.flush()
    await spy.unsubscribe()


async def test_it_takes_what_there_is_and_asks_for_no_more_than_the_slots(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for number in range(20):
        await put(queue_client, endpoint, f"r{number}", lane=list(Lane)[number % 3])
    taken = Taken(slots=4)
    async with (
        spying(queue_client, endpoint) as batches,
        pulling(queue_client.connection, taken, stream=endpoint.stream) as puller,
    ):
        for count in range(4, 21):
            await taken.until(count)
            message, _ = taken.messages[count - 4]
            await queue_client.settler.confirm(message, ACK)
            taken.busy -= 1
            puller.slots_changed()
    assert (len(set(taken.tokens)), taken.refused) == (20, 0)
    assert {info.number for _, info in taken.messages} == {1}
    assert max(batches) <= 4


async def test_lanes_are_served_in_strict_order(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for lane in (Lane.LOW, Lane.NORMAL, Lane.HIGH):
        for number in range(3):
            await put(queue_client, endpoint, f"{lane}-{number}", lane=lane)
    taken = Taken(slots=1)
    async with pulling(queue_client.connection, taken, stream=endpoint.stream) as puller:
        for count in range(1, 10):
            await taken.until(count)
            taken.busy -= 1
            puller.slots_changed()
    assert taken.tokens == [f"{lane}-{number}" for lane in Lane for number in range(3)]


@pytest.mark.parametrize("lane", list(Lane))
async def test_a_message_that_is_published_while_it_waits_arrives(
    queue_client: QueueClient, endpoint: Endpoint, lane: Lane
) -> None:
    await provision(queue_client, endpoint)
    taken = Taken(slots=2)
    async with pulling(queue_client.connection, taken, stream=endpoint.stream):
        await waiting(queue_client, endpoint, 1)
        await put(queue_client, endpoint, "r1", lane=lane)
        await taken.until(1)
        await waiting(queue_client, endpoint, 1)
        await put(queue_client, endpoint, "r2", lane=lane)
        await taken.until(2)
    assert taken.tokens == ["r1", "r2"]


async def test_after_stop_no_pull_is_left_on_the_server(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    async with pulling(queue_client.connection, Taken(slots=2), stream=endpoint.stream) as puller:
        await waiting(queue_client, endpoint, 1)
        puller.stop()
    await waiting(queue_client, endpoint, 0)


async def test_messages_that_arrive_after_stop_are_handed_back(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for number in range(20):
        await put(queue_client, endpoint, f"r{number}")
    accepted: list[tuple[Msg, DeliveryInfo]] = []
    handed_back: list[None] = []

    def accept(message: Msg, info: DeliveryInfo, asked: float) -> bool:
        del asked
        accepted.append((message, info))
        puller.stop()
        return True

    puller = Puller(
        queue_client.connection,
        endpoint.stream,
        LANES,
        room=lambda _: 20,
        accept=accept,
        events=PullEvents(handed_back=lambda: handed_back.append(None)),
    )
    async with asyncio.timeout(LIMIT):
        await puller.run()
    assert (len(accepted), len(handed_back)) == (1, 19)
    await queue_client.settler.confirm(accepted[0][0], ACK)
    for _ in range(19):
        message, info = await take(queue_client, endpoint)
        assert info.number == 2
        await queue_client.settler.confirm(message, ACK)
    await nothing_left(queue_client, endpoint)


async def test_after_a_crash_of_the_server_messages_come_again(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    taken, failures = Taken(slots=2), Failures()
    pullers: list[Puller] = []

    def reset() -> None:
        for puller in pullers:
            puller.reset()

    client = await QueueClient.open(
        ServerAddress(url=own_server.url),
        name="t",
        role="tests",
        events=ConnectionEvents(reconnected=reset),
    )
    await provision(client, endpoint)
    async with pulling(
        client.connection, taken, stream=endpoint.stream, events=failures.events
    ) as puller:
        pullers.append(puller)
        await waiting(client, endpoint, 1)
        await own_server.kill()
        await own_server.start()
        await put(client, endpoint, "r1")
        await taken.until(1)
        await waiting(client, endpoint, 1)
    assert taken.tokens == ["r1"]
    assert PullErrorKind.RECONNECTED in failures.kinds
    await client.close()


async def test_it_recovers_from_a_deleted_consumer(
    queue_client: QueueClient, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    await provision(queue_client, endpoint)
    taken, failures = Taken(slots=2), Failures()
    async with pulling(
        queue_client.connection, taken, stream=endpoint.stream, events=failures.events
    ):
        await waiting(queue_client, endpoint, 1)
        await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.normal")
        await failures.until(3)
        await provision(queue_client, endpoint)
        await put(queue_client, endpoint, "r1")
        await taken.until(1)
    assert set(failures.kinds) == {PullErrorKind.STATUS}
    assert "pull failed, starting over" in caplog.messages


@pytest.mark.parametrize("lane", list(Lane))
async def test_a_deleted_consumer_is_restored_and_its_messages_flow(
    queue_client: QueueClient, endpoint: Endpoint, lane: Lane
) -> None:
    await provision(queue_client, endpoint)
    taken = Taken(slots=3)

    async def restore() -> None:
        await provision(queue_client, endpoint)

    async with pulling(queue_client.connection, taken, stream=endpoint.stream, restore=restore):
        await waiting(queue_client, endpoint, 1)
        await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.{lane}")
        for each in Lane:
            await put(queue_client, endpoint, f"r-{each}", lane=each)
        await taken.until(3)
    assert sorted(taken.tokens) == sorted(f"r-{each}" for each in Lane)


async def test_a_deleted_stream_is_restored_too(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    taken, restored = Taken(slots=1), asyncio.Event()

    async def restore() -> None:
        await provision(queue_client, endpoint)
        restored.set()

    async with pulling(queue_client.connection, taken, stream=endpoint.stream, restore=restore):
        await waiting(queue_client, endpoint, 1)
        await queue_client.api.request(f"STREAM.DELETE.{endpoint.stream}")
        async with asyncio.timeout(LIMIT):
            await restored.wait()
        await put(queue_client, endpoint, "r1")
        await taken.until(1)


async def test_without_a_stream_it_backs_off_and_stops_when_told(
    queue_client: QueueClient, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "dialback")
    taken, failures = Taken(slots=2), Failures()
    sent = queue_client.connection.stats["out_msgs"]
    async with pulling(
        queue_client.connection, taken, stream=endpoint.stream, events=failures.events
    ):
        await failures.until(4 * len(LANES))
        pulls = queue_client.connection.stats["out_msgs"] - sent
        assert pulls == len(failures.kinds)
    records = [r for r in caplog.records if r.getMessage() == "pull failed, starting over"]
    delays = [vars(record)["delay"] for record in records]
    assert delays[0] >= 0.05
    assert delays[3] >= 0.4
    assert set(failures.kinds) == {PullErrorKind.STATUS}


async def test_nats_py_still_has_the_private_unsubscribe_that_cancels_pulls(
    queue_client: QueueClient,
) -> None:
    nats = queue_client.connection
    heard: list[Msg] = []

    async def note(message: Msg) -> None:
        heard.append(message)

    inbox = await nats.subscribe(  # pyright: ignore[reportUnknownMemberType]
        nats.new_inbox(), cb=note
    )
    await nats._send_unsubscribe(inbox._id)  # pyright: ignore[reportPrivateUsage]
    await nats.publish(inbox.subject, b"")
    await nats.flush()
    assert heard == []  # the server has dropped it
    await inbox.unsubscribe()  # the client had not
