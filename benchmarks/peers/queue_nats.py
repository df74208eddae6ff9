"""A child: nats-py alone, as the limit: fetch, decode, ``ack_sync`` in a task for each message."""

import asyncio
import importlib
import json
from contextlib import suppress
from typing import Any

from typing_extensions import override

from benchmarks.peers.queue_worker import PeerWorker, main

nats: Any = importlib.import_module("nats")  # the peer's own
nats_errors: Any = importlib.import_module("nats.errors")


class NatsWorker(PeerWorker):
    """One pull subscription; as many messages in flight as there are slots, over batches."""

    def __init__(self) -> None:
        """Nothing is connected yet."""
        super().__init__()
        self._pull: Any = None
        self._slots = 0
        self._running: asyncio.Task[None] | None = None

    @override
    async def prepare(self, command: dict[str, Any]) -> None:
        client = await nats.connect(command["server"])
        self._slots = command["slots"]
        self._pull = await client.jetstream().pull_subscribe(
            command["subject"], durable="peer", stream=command["stream"]
        )

    @override
    async def begin(self) -> None:
        self._running = asyncio.create_task(self._run(), name="run")

    async def _run(self) -> None:
        while True:
            with suppress(nats_errors.TimeoutError):
                messages = await self._pull.fetch(self._slots, timeout=5)
                async with asyncio.TaskGroup() as group:
                    for message in messages:
                        group.create_task(self._work(message))

    async def _work(self, message: Any) -> None:
        json.loads(message.data)
        await message.ack_sync(timeout=5)
        self.ledger.settle()


if __name__ == "__main__":
    main(NatsWorker)
