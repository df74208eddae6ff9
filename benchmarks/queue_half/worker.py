"""A child: a worker process of dialback's queue half, which drains a backlog.

Commands: ``prepare`` (server, slots, what to leave out), ``begin`` pulling, and ``reach`` a
number of settled requests, answered with the seconds from the beginning to the last confirmed
acknowledgement.
"""

import asyncio
import logging
import os
from contextlib import AsyncExitStack, redirect_stderr
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.lines import serve
from benchmarks.queue_half.ledger import Ledger
from benchmarks.queue_half.parts import queue_half
from benchmarks.queue_half.refill import Refill
from dialback.cli.logs import set_up_logs
from dialback.queue.consumer import Consumer
from dialback.settings import Settings


class _Child:
    """Carries out the parent's commands; the process's end closes what is open."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._ledger = Ledger()
        self._consumer: Consumer | None = None
        self._pulling: asyncio.Task[None] | None = None

    async def carry_out(self, command: dict[str, Any]) -> dict[str, Any]:
        match command:
            case {"do": "prepare", "server": server, "slots": slots, "without": without}:
                _set_up_logs("WARNING" if "events" in without else "INFO")
                settings = Settings.load(server=server, slots=slots, status_port=-1)
                work = command.get("work", 0.0)
                self._consumer = await queue_half(
                    self._stack, settings, self._ledger, without, work
                )
                if requests := command.get("refill"):
                    refill = await Refill.open(self._stack, settings, requests)
                    self._ledger.on_settled(refill.put)
                return {}
            case {"do": "begin"}:
                consumer = self._prepared()
                self._ledger.begin()
                self._pulling = asyncio.create_task(consumer.run(), name="pull-loop")
                return {}
            case {"do": "reach", "count": count}:
                return {"seconds": await self._ledger.reached(count)}
            case _:
                raise ValueError(f"no such command: {command}")

    def _prepared(self) -> Consumer:
        assert self._consumer is not None  # noqa: S101 -- prepare comes first
        return self._consumer


def _set_up_logs(level: str) -> None:
    """Write logs as a worker does, but to nowhere; warnings come to stderr."""
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- as long as we live
    with redirect_stderr(nowhere):
        set_up_logs(level, "json")
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    logging.getLogger().addHandler(warnings)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(_Child().carry_out))
