import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.peers.asking import Reading, carry_out
from benchmarks.peers.engine import generate

REQUEST = {"n": 3, "size": 0, "pause": 0, "turn": False}


def command(**changes: Any) -> dict[str, Any]:
    usual = {"requests": 5, "in_flight": 2, "repeat": 1, "timed_from": None, "request": REQUEST}
    return usual | changes


async def ask(request: dict[str, Any], reading: Reading) -> None:
    await reading.read(generate(request, None))


async def numbered(*numbers: int) -> AsyncIterator[dict[str, int]]:
    for number in numbers:
        yield {"i": number, "t": 0}


async def test_every_request_of_every_repetition_is_counted() -> None:
    answer = await carry_out(command(repeat=4), ask)
    assert answer["items"] == 4 * 5 * 3
    assert len(answer["first"]) == 4 * 5
    assert answer["added"] == []


async def test_latencies_are_taken_from_the_item_on_that_is_asked_for() -> None:
    answer = await carry_out(command(timed_from=1), ask)
    assert len(answer["added"]) == 5 * 2
    assert min(answer["added"]) >= 0


async def test_no_more_requests_are_in_flight_than_asked_for() -> None:
    running, most = 0, 0

    async def counted(request: dict[str, Any], reading: Reading) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await ask(request, reading)
        running -= 1

    await carry_out(command(requests=20, in_flight=4), counted)
    assert most == 4


@pytest.mark.parametrize("numbers", [(0, 1), (0, 1, 2, 3), (0, 2, 1), (0, 0, 1), ()])
async def test_a_stream_with_other_items_than_asked_for_is_an_error(
    numbers: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match="came"):
        await Reading(3).read(numbered(*numbers))


async def test_one_bad_stream_fails_the_whole_command() -> None:
    async def bad(request: dict[str, Any], reading: Reading) -> None:
        del request
        await reading.read(numbered(0))

    with pytest.raises(ExceptionGroup):
        await carry_out(command(), bad)
