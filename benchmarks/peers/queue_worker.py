"""What the queue's peers share: prepare, begin and reach, as dialback's worker has them.

Runs in a peer's own Python: only the standard library and the benchmark's child side.
"""

import asyncio
import importlib
from abc import ABC, abstractmethod
from typing import Any

from benchmarks.lines import serve
from benchmarks.queue_half.ledger import Ledger


class PeerWorker(ABC):
    """One peer's worker.

    Attributes:
        ledger: To be told of each job whose acknowledgement was confirmed.
    """

    def __init__(self) -> None:
        """Nothing is connected yet."""
        self.ledger = Ledger()

    @abstractmethod
    async def prepare(self, command: dict[str, Any]) -> None:
        """Wire and connect; ``command`` has server, stream, subject and slots."""

    @abstractmethod
    async def begin(self) -> None:
        """Start to pull."""

    async def carry_out(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one of the parent's commands.

        Raises:
            ValueError: If there is no such command.
        """
        match command["do"]:
            case "prepare":
                await self.prepare(command)
                return {}
            case "begin":
                self.ledger.begin()
                await self.begin()
                return {}
            case "reach":
                return {"seconds": await self.ledger.reached(command["count"])}
            case unknown:
                raise ValueError(f"no such command: {unknown}")


def main(worker: type[PeerWorker]) -> None:
    """Serve commands on uvloop, as the workers' own command lines do."""
    uvloop: Any = importlib.import_module("uvloop")  # in the peer's environment

    async def serve_one() -> None:
        await serve(worker().carry_out)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_one())
