"""Keeps a queue at its depth: each request that is settled is replaced at once by a new one."""

import asyncio
from contextlib import AsyncExitStack
from typing import Self

from nats.aio.client import Client

from benchmarks.queue_half.requests import request
from dialback.queue.client import QueueClient
from dialback.settings import Settings


class Refill:
    """Publishes prepared requests, over a connection of its own."""

    def __init__(self, client: Client, count: int) -> None:
        """Prepare so many requests; when they are used up, no more are published."""
        self._client = client
        self._requests = [request() for _ in range(count)]
        self._under_way: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, stack: AsyncExitStack, settings: Settings, count: int) -> Self:
        """Connect and prepare; the stack closes the connection."""
        client = await QueueClient.open(settings.server_address(), name="refill", role="requester")
        stack.push_async_callback(client.close)
        return cls(client.connection, count)

    def put(self) -> None:
        """Publish one, without waiting for its acknowledgement."""
        if not self._requests:
            return
        subject, payload, headers = self._requests.pop()
        task = asyncio.create_task(self._client.publish(subject, payload, headers=headers))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
