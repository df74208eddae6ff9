"""Connections that are due together leave together, and none keeps another from leaving."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from dialback.transport.departures import Departures


class Passenger:
    """Notes that it left, then fails if it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.departed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._error = error

    def depart(self, tick: int) -> None:
        self.departed.set_result(tick)
        if self._error is not None:
            raise self._error


class Loop:
    """An event loop that is turned by hand."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_later(self, delay: float, do: Callable[..., None], *arguments: object) -> None:
        del delay
        self.call_soon(do, *arguments)

    def call_soon(self, do: Callable[..., None], *arguments: object) -> None:
        self.calls.append(partial(do, *arguments))


@pytest.fixture
def departures() -> Departures:
    return Departures()


def _add(departures: Departures, passenger: Passenger, now: float, delay: float) -> int:
    return departures.add(passenger, now, delay, asyncio.get_running_loop())


async def test_each_leaves_once_at_the_tick_that_it_was_given(departures: Departures) -> None:
    passengers, now = [Passenger() for _ in range(30)], time.monotonic()
    ticks = [_add(departures, one, now, 0.0001 * number) for number, one in enumerate(passengers)]
    assert [await one.departed for one in passengers] == ticks
    assert len(set(ticks)) < len(ticks)


async def test_those_of_one_millisecond_have_one_timer(
    departures: Departures, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[tuple[float, int]] = []

    def call_later(delay: float, leave: Callable[..., None], tick: int, loop: object) -> None:
        del leave, loop
        timers.append((delay, tick))

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    delays = (0.0021, 0.0024, 0.0019, 0.004)
    ticks = [_add(departures, Passenger(), 100.0, delay) for delay in delays]
    assert ticks == [100_002, 100_002, 100_002, 100_004]
    assert [tick for _, tick in timers] == [100_002, 100_004]
    assert [delay for delay, _ in timers] == pytest.approx([0.002, 0.004])


async def test_a_tick_that_is_over_can_be_given_again(departures: Departures) -> None:
    for _ in range(3):
        one = Passenger()
        tick = _add(departures, one, 1.0, 0.0)
        assert await one.departed == tick == 1000


async def test_one_that_fails_is_reported_and_keeps_nobody_from_leaving(
    departures: Departures,
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    broken = [OSError("first"), OSError("second")]
    passengers = [Passenger(), Passenger(broken[0]), Passenger(broken[1]), Passenger()]
    for one in passengers:
        _add(departures, one, 1.0, 0.0)
    await asyncio.gather(*(one.departed for one in passengers))
    assert [context["exception"] for context in told] == broken


async def test_an_interrupt_keeps_nobody_from_leaving(departures: Departures) -> None:
    loop = Loop()
    passengers = [Passenger(), Passenger(KeyboardInterrupt()), Passenger()]
    for one in passengers:
        departures.add(one, 1.0, 0.0, cast("asyncio.AbstractEventLoop", loop))
    with pytest.raises(KeyboardInterrupt):
        loop.calls.pop()()
    assert [one.departed.done() for one in passengers] == [True, True, False]
    loop.calls.pop()()
    assert passengers[2].departed.done()
    assert loop.calls == []
