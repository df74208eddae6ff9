"""Every answer to a delivery, overheard on the wire: who settled what, and with which verb."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nats.aio.msg import Msg

from dialback.queue.client import QueueClient
from dialback.queue.delivery import IN_PROGRESS, parse_ack_subject
from dialback.queue.topology import Endpoint


@dataclass(frozen=True, slots=True)
class Settlement:
    """One answer.

    Attributes:
        request: Stream sequence of the message.
        number: Which delivery was answered.
        body: The answer.
    """

    request: int
    number: int
    body: bytes

    @property
    def renewal(self) -> bool:
        """Whether it only prolongs the lease."""
        return self.body.startswith(IN_PROGRESS)


@asynccontextmanager
async def settlements(client: QueueClient, endpoint: Endpoint) -> AsyncGenerator[list[Settlement]]:
    """Listen to all answers to deliveries of an endpoint while the block runs."""
    heard: list[Settlement] = []

    async def hear(message: Msg) -> None:
        info = parse_ack_subject(message.subject)
        assert info is not None, message.subject
        heard.append(Settlement(info.sequence, info.number, message.data))

    nats = client.connection
    listening = await nats.subscribe(  # pyright: ignore[reportUnknownMemberType]
        f"$JS.ACK.{endpoint.stream}.>", cb=hear
    )
    try:
        yield heard
    finally:
        await listening.unsubscribe()
