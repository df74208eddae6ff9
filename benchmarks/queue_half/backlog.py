"""The parent's side of a backlog: its stream, filled before the clock starts, and its end."""

import secrets
from collections.abc import Callable
from typing import Final, Self, TypeAlias

from nats.aio.client import Client
from nats.js.api import RetentionPolicy
from nats.js.client import JetStreamContext

from benchmarks.queue_half.requests import ENDPOINT, request

Message: TypeAlias = tuple[str, bytes, dict[str, str] | None]
"""Subject, payload and headers."""
_AT_ONCE: Final = 256  # publishes without an acknowledgement yet


class Backlog:
    """One queue for one run. Use as an async context manager; the stream goes at the end.

    Attributes:
        stream: Name of the stream.
        subject: What a peer's messages are published to.
    """

    def __init__(self, server: str, make: Callable[[str], Message] | None) -> None:
        """Prepare.

        Args:
            server: URL.
            make: Makes a peer's message, given the subject; ``None`` for dialback's requests,
                whose stream its worker makes.
        """
        self._server = server
        self._make = make
        name = f"PEER{secrets.token_hex(4)}"
        self.stream = ENDPOINT.stream if make is None else name
        self.subject = f"{name}.jobs"
        self._client = Client()

    async def __aenter__(self) -> Self:
        await self._client.connect(self._server)  # pyright: ignore[reportUnknownMemberType]
        if self._make is not None:
            await self._context.add_stream(  # pyright: ignore[reportUnknownMemberType]
                name=self.stream, subjects=[self.subject], retention=RetentionPolicy.WORK_QUEUE
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._context.delete_stream(self.stream)
        await self._client.close()

    @property
    def _context(self) -> JetStreamContext:
        return self._client.jetstream(  # pyright: ignore[reportUnknownMemberType]
            publish_async_max_pending=_AT_ONCE
        )

    async def fill(self, count: int) -> None:
        """Publish so many messages, and wait until all are stored.

        Raises:
            RuntimeError: If the stream does not hold as many.
        """
        context = self._context
        for _ in range(count):
            subject, payload, headers = self._make(self.subject) if self._make else request()
            await context.publish_async(  # pyright: ignore[reportUnknownMemberType]
                subject, payload, headers=headers
            )
        await context.publish_async_completed()
        held = (await context.stream_info(self.stream)).state.messages
        if held != count:
            raise RuntimeError(f"stream {self.stream} holds {held} messages, not {count}")
