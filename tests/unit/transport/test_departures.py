"""Connections that are due together leave together, and none keeps another from leaving."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dialback.transport.departures import Departures, departures_of


class Passenger:
    """Notes that it left, then fails if it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.departed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._error = error

    def depart(self, tick: int) -> None:
        self.departed.set_result(tick)
        if self._error is not None:
            raise self._error


@pytest.fixture
async def departures() -> Departures:
    return Departures(asyncio.get_running_loop())


def _add(departures: Departures, passenger: Passenger, delay: float) -> int:
    return departures.add(passenger, asyncio.get_running_loop().time(), delay)


async def test_each_leaves_once_at_the_tick_that_it_was_given(departures: Departures) -> None:
    passengers = [Passenger() for _ in range(30)]
    ticks = [_add(departures, one, 0.0001 * number) for number, one in enumerate(passengers)]
    assert [await one.departed for one in passengers] == ticks
    assert len(set(ticks)) < len(ticks)


async def test_those_of_one_millisecond_have_one_timer(
    departures: Departures, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[tuple[float, int]] = []

    def call_later(delay: float, leave: Callable[[int], None], tick: int) -> None:
        del leave
        timers.append((delay, tick))

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    passengers = [Passenger() for _ in range(4)]
    delays = (0.0021, 0.0024, 0.0019, 0.004)
    ticks = [departures.add(*it) for it in zip(passengers, [100.0] * 4, delays, strict=True)]
    assert ticks == [100_002, 100_002, 100_002, 100_004]
    assert [tick for _, tick in timers] == [100_002, 100_004]
    assert [delay for delay, _ in timers] == pytest.approx([0.002, 0.004])


async def test_a_tick_that_is_over_can_be_given_again(departures: Departures) -> None:
    for _ in range(3):
        one = Passenger()
        tick = departures.add(one, 1.0, 0.0)
        assert await one.departed == tick == 1000


async def test_one_that_fails_is_reported_and_keeps_nobody_from_leaving(
    departures: Departures,
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    broken = OSError("broken")
    passengers = [Passenger(), Passenger(broken), Passenger()]
    for one in passengers:
        departures.add(one, 1.0, 0.0)
    await asyncio.gather(*(one.departed for one in passengers))
    assert [context["exception"] for context in told] == [broken]


async def test_an_event_loop_has_its_own() -> None:
    loop = asyncio.get_running_loop()
    assert departures_of(loop) is departures_of(loop)
    other = await asyncio.to_thread(lambda: asyncio.run(_own()))
    assert other is not departures_of(loop)


async def _own() -> Departures:
    return departures_of(asyncio.get_running_loop())
