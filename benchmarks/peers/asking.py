"""The load that every client makes: requests, so many in flight, their answers checked.

Clients differ in how they ask only; what they do with an item is the same few lines here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

_SAMPLE = 50_000  # latencies reported at most


class Reading:
    """What a client sees of one request.

    Attributes:
        count: Items the request asks for.
        first: Seconds from asking to the first item.
        timed_from: Number of the first item whose latency is taken; ``count`` for no item.
        added: Seconds from the engine to here, of each such item.
    """

    def __init__(self, count: int, timed_from: int | None = None) -> None:
        """Ask now."""
        self.count = count
        self.first = 0.0
        self.timed_from = count if timed_from is None else timed_from
        self.added: list[float] = []
        self._asked = time.perf_counter()

    def first_came(self) -> None:
        """The first item is here."""
        self.first = time.perf_counter() - self._asked

    def came(self, made: int) -> None:
        """An item whose latency is taken is here; it was made at ``made`` nanoseconds."""
        self.added.append((time.monotonic_ns() - made) * 1e-9)

    async def read(self, items: AsyncIterator[Any]) -> None:
        """Read all items.

        Raises:
            ValueError: If one is missing, too many or out of order.
        """
        timed_from = self.timed_from
        expected = 0
        async for item in items:
            if not expected:
                self.first_came()
            if item["i"] != expected:
                raise ValueError(f"item {item['i']} came where {expected} should")
            if expected >= timed_from:
                self.came(item["t"])
            expected += 1
        self.check(expected)

    def check(self, got: int) -> None:
        """Check the number of items.

        Raises:
            ValueError: If it is not the one that was asked for.
        """
        if got != self.count:
            raise ValueError(f"{got} items came, not {self.count}")


Ask: TypeAlias = Callable[[dict[str, Any], Reading], Awaitable[None]]
"""Sends one request and reads its answer."""


async def carry_out(command: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """Send ``requests`` requests, ``in_flight`` at a time, and all that ``repeat`` times.

    Returns:
        ``seconds`` of all repetitions together, from the first request to the last end;
        ``items``; ``first``: seconds to the first item of each request; ``added``: seconds
        from the engine to the caller of each item from number ``timed_from`` on (``None``:
        of no item), or of every so many if there are very many.

    Raises:
        ValueError: If a request did not get all its items in order.
    """
    readings: list[Reading] = []
    seconds = 0.0
    for _ in range(command["repeat"]):
        start = time.perf_counter()
        readings += await _burst(command, ask)
        seconds += time.perf_counter() - start
    added = [one for reading in readings for one in reading.added]
    return {
        "seconds": seconds,
        "items": sum(reading.count for reading in readings),
        "first": [reading.first for reading in readings],
        "added": added[:: len(added) // _SAMPLE + 1],
    }


async def _burst(command: dict[str, Any], ask: Ask) -> list[Reading]:
    readings: list[Reading] = []
    numbers = iter(range(command["requests"]))

    async def one_after_the_other(numbers: Iterator[int]) -> None:
        for _ in numbers:  # shared: whoever is free takes the next one
            reading = Reading(command["request"]["n"], command["timed_from"])
            readings.append(reading)
            await ask(command["request"], reading)

    async with asyncio.TaskGroup() as group:
        for _ in range(command["in_flight"]):
            group.create_task(one_after_the_other(numbers))
    return readings
