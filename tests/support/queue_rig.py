"""Queues for tests: streams made, messages stored and taken, pulled messages collected."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from dialback.queue.client import QueueClient
from dialback.queue.delivery import DeliveryInfo, parse_ack_subject
from dialback.queue.hand_back import HandBack
from dialback.queue.lane_repair import Restore
from dialback.queue.publisher import PubAck
from dialback.queue.pull_settings import PullEvents, PullSettings
from dialback.queue.puller import Puller
from dialback.queue.topology import Endpoint, Lane, QueueSettings, Topology
from support.eventually import eventually

LIMIT = 30.0  # seconds for anything a test waits for
LANES = [lane.value for lane in Lane]


async def provision(client: QueueClient, endpoint: Endpoint, **settings: Any) -> None:
    """Create the endpoint's streams and consumers."""
    await Topology(client.api, endpoint, QueueSettings(**settings)).ensure()


async def put(
    client: QueueClient,
    endpoint: Endpoint,
    token: str,
    *,
    lane: Lane = Lane.NORMAL,
    payload: bytes = b"payload",
    headers: Mapping[str, str] | None = None,
) -> PubAck:
    """Store one request."""
    subject = endpoint.request_subject(lane, token)
    return await client.publisher.publish(subject, payload, headers or {})


async def take(
    client: QueueClient, endpoint: Endpoint, lane: Lane = Lane.NORMAL
) -> tuple[Msg, DeliveryInfo]:
    """Take one message, waiting for it, as another worker would."""
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{endpoint.stream}.{lane}"
    body = orjson.dumps({"batch": 1, "expires": round(LIMIT * 1e9)})
    nats = client.connection
    inbox = await nats.subscribe(nats.new_inbox())  # pyright: ignore[reportUnknownMemberType]
    await nats.publish(subject, body, reply=inbox.subject)
    message = await inbox.next_msg(timeout=LIMIT)
    await inbox.unsubscribe()
    info = parse_ack_subject(message.reply)
    assert info is not None, message.headers
    return message, info


async def lane_state(
    client: QueueClient, endpoint: Endpoint, lane: Lane = Lane.NORMAL
) -> dict[str, Any]:
    """The server's view of a lane."""
    return await client.api.consumer_info(endpoint.stream, lane)


async def stored(client: QueueClient, stream: str) -> int:
    """How many messages a stream has."""
    return int((await client.api.stream_info(stream))["state"]["messages"])


async def nothing_left(client: QueueClient, endpoint: Endpoint) -> None:
    """Wait until no message is stored and none is being worked on."""

    async def left() -> int:
        pending: list[int] = [
            (await lane_state(client, endpoint, lane))["num_ack_pending"] for lane in Lane
        ]
        return await stored(client, endpoint.stream) + sum(pending)

    await eventually(left, lambda count: count == 0)


class Taken:
    """A puller's slots: every accepted message keeps one until it is released."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.busy = 0
        self.messages: list[tuple[Msg, DeliveryInfo]] = []
        self.refused = 0
        self.only: set[str] | None = None  # lanes that may use the slots
        self.asked: list[float] = []
        self._changed = asyncio.Event()

    def free(self) -> int:
        """Free slots."""
        return self.slots - self.busy

    def room(self, lane: str) -> int:
        """Free slots for a lane."""
        return self.free() if self.only is None or lane in self.only else 0

    def accept(self, message: Msg, info: DeliveryInfo, asked: float) -> bool:
        """Take a message if a slot is free."""
        self.asked.append(asked)
        if self.free() <= 0:
            self.refused += 1
            return False
        self.busy += 1
        self.messages.append((message, info))
        self._changed.set()
        return True

    @property
    def tokens(self) -> list[str]:
        """Last tokens of the subjects, in the order they came."""
        return [message.subject.rpartition(".")[2] for message, _ in self.messages]

    async def until(self, count: int) -> None:
        """Wait until so many messages were taken."""
        async with asyncio.timeout(LIMIT):
            while len(self.messages) < count:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def pulling(
    client: Client,
    taken: Taken,
    *,
    stream: str = "JOBS",
    settings: PullSettings | None = None,
    events: PullEvents | None = None,
    restore: Restore | None = None,
    hand_back: HandBack | None = None,
    in_hand: Callable[[], int] = lambda: 0,
) -> AsyncGenerator[Puller]:
    """Run a puller; stop it at the end and wait for that."""
    puller = Puller(
        client,
        stream,
        LANES,
        room=taken.room,
        accept=taken.accept,
        in_hand=in_hand,
        settings=settings,
        events=events,
        restore=restore,
        hand_back=hand_back,
    )
    running = asyncio.create_task(puller.run())
    try:
        yield puller
    finally:
        puller.stop()
        async with asyncio.timeout(LIMIT):
            await running
