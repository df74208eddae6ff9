"""A child: taskiq's worker on its JetStream pull broker, with confirmed acknowledgement.

The broker's own acknowledgement is not confirmed (``ack``); here it is (``ack_sync``), by the
listener that a subclass of the broker may replace. The rest is as ``taskiq worker`` has it:
``max_async_tasks=slots``, acknowledged when the result is stored (here: nowhere).
"""

import asyncio
import importlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from typing_extensions import override

from benchmarks.peers.queue_worker import PeerWorker, main

taskiq: Any = importlib.import_module("taskiq")  # only in the peer's environment
receiver: Any = importlib.import_module("taskiq.receiver")
taskiq_nats: Any = importlib.import_module("taskiq_nats")
nats_errors: Any = importlib.import_module("nats.errors")


class TaskiqWorker(PeerWorker):
    """Its broker with one task, and a receiver."""

    def __init__(self) -> None:
        """Nothing is connected yet."""
        super().__init__()
        self._receiver: Any = None
        self._finish = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    @override
    async def prepare(self, command: dict[str, Any]) -> None:
        worker, batch = self, command["slots"]

        class ConfirmingBroker(taskiq_nats.PullBasedJetStreamBroker):  # type: ignore[misc]
            """Acknowledges with confirmation."""

            async def listen(self) -> AsyncGenerator[Any]:
                while True:
                    with suppress(nats_errors.TimeoutError):
                        for message in await self.consumer.fetch(batch=batch, timeout=5):
                            yield taskiq.AckableMessage(
                                data=message.data, ack=worker.confirmed(message.ack_sync)
                            )

        broker: Any = ConfirmingBroker(
            command["server"],
            subject=command["subject"],
            stream_name=command["stream"],
            pull_consume_batch=batch,
        )
        broker.is_worker_process = True

        async def work(body: dict[str, Any]) -> None:
            pass

        broker.register_task(work, task_name="work")
        await broker.startup()
        self._receiver = receiver.Receiver(broker, max_async_tasks=batch, run_startup=False)

    def confirmed(self, ack: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
        """Return an acknowledgement that is counted when the server has confirmed it."""

        async def count() -> None:
            await ack()
            self.ledger.settle()

        return count

    @override
    async def begin(self) -> None:
        self._listening = asyncio.create_task(self._receiver.listen(self._finish), name="listen")


if __name__ == "__main__":
    main(TaskiqWorker)
