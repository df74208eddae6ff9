"""What every system offers: run a load, and say how fast and at what CPU time it went."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from benchmarks.child import Child, Usage
from benchmarks.measurement import Run


class Latency(Enum):
    """Which latencies are taken."""

    FIRST = "seconds to the first item"
    ADDED = "seconds from the engine to the caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a client asks for.

    Attributes:
        requests: Requests of one repetition.
        in_flight: How many of them at a time.
        repeat: Repetitions, one after the other.
        items: Items of each request.
        size: Characters of text in each item; 0 for none.
        pause: Seconds before each item.
        turn: Whether the engine lets the loop turn before each item.
        latency: Which latencies are taken.
        timed_from: Number of the first item of a stream whose added latency is taken.
    """

    requests: int
    in_flight: int
    repeat: int = 1
    items: int = 1
    size: int = 0
    pause: float = 0.0
    turn: bool = False
    latency: Latency = Latency.FIRST
    timed_from: int = 0

    def command(self) -> dict[str, Any]:
        """Return the command for a client (:mod:`benchmarks.peers.asking`)."""
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "repeat": self.repeat,
            "timed_from": self.timed_from if self.latency is Latency.ADDED else None,
            "request": {"n": self.items, "size": self.size, "pause": self.pause, "turn": self.turn},
        }


class System:
    """A client, and the processes that serve it."""

    def __init__(self, client: Child, served_by: Mapping[str, Usage]) -> None:
        """Take over running processes.

        Args:
            client: Asks.
            served_by: The others, by role: ``worker``, ``server``.
        """
        assert client.usage is not None  # noqa: S101 -- it runs
        self._client = client
        self._usages = {"client": client.usage, **served_by}

    async def run(self, load: Load) -> Run:
        """Run a load; units are items.

        Raises:
            ChildError: If a request did not get all its items.
        """
        before = {role: usage.cpu() for role, usage in self._usages.items()}
        answer = await self._client.ask(**load.command())
        return Run(
            units=answer["items"],
            seconds=answer["seconds"],
            cpu={role: usage.cpu() - before[role] for role, usage in self._usages.items()},
            latencies=answer["added" if load.latency is Latency.ADDED else "first"],
            memory={role: usage.memory() for role, usage in self._usages.items()},
        )


Opening: TypeAlias = AbstractAsyncContextManager[System]
"""Starts a system, and stops it at the end."""
