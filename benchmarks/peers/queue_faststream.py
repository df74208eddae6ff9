"""A child: FastStream's JetStream worker, with confirmed acknowledgement.

``PullSub(batch_size=slots)``, ``max_workers=slots``, ``AckPolicy.MANUAL`` and nats-py's own
``ack_sync`` in the handler. Its access log (two lines for each message) is on unless ``events``
is left out. Without ``workers`` it has no ``max_workers``: it handles one batch at a time, all
its messages at once, which is cheaper.
"""

import importlib
import logging
import os
from pathlib import Path
from typing import Any

from typing_extensions import override

from benchmarks.peers.queue_worker import PeerWorker, main

faststream: Any = importlib.import_module("faststream")  # only in the peer's environment
nats: Any = importlib.import_module("faststream.nats")
NatsMessage: Any = importlib.import_module("faststream.nats.annotations").NatsMessage


class FastStreamWorker(PeerWorker):
    """Its broker with one subscriber."""

    def __init__(self) -> None:
        """Nothing is connected yet."""
        super().__init__()
        self._broker: Any = None

    @override
    async def prepare(self, command: dict[str, Any]) -> None:
        logger = None if "events" in command["without"] else _access_log()
        self._broker = nats.NatsBroker(command["server"], logger=logger)
        subscriber = self._broker.subscriber(
            command["subject"],
            stream=nats.JStream(command["stream"], declare=False),
            durable="peer",
            pull_sub=nats.PullSub(batch_size=command["slots"]),
            max_workers=1 if "workers" in command["without"] else command["slots"],
            ack_policy=faststream.AckPolicy.MANUAL,
        )

        async def handle(body: dict[str, Any], message: Any) -> None:
            await message.raw_message.ack_sync(timeout=5)
            self.ledger.settle()

        handle.__annotations__["message"] = NatsMessage  # by this FastStream knows what it wants
        subscriber(handle)
        await self._broker.connect()

    @override
    async def begin(self) -> None:
        await self._broker.start()


def _access_log() -> logging.Logger:
    """Return a logger in FastStream's own manner that writes to nowhere, as dialback's does."""
    logger = logging.getLogger("access")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- as long as we live
    handler = logging.StreamHandler(nowhere)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s - %(message)s"))
    logger.addHandler(handler)
    return logger


if __name__ == "__main__":
    main(FastStreamWorker)
