import asyncio

from dialback.transport.turns import TURNS


async def _turn() -> None:
    await asyncio.sleep(0)


async def test_a_turn_counts_once_however_much_is_written_in_it() -> None:
    turns = TURNS.of(asyncio.get_running_loop())
    before = turns.number
    for _ in range(3):
        turns.written(asyncio.get_running_loop())
    assert turns.number == before
    await _turn()
    assert turns.number == before + 1
    turns.written(asyncio.get_running_loop())
    await _turn()
    assert turns.number == before + 2


async def test_a_turn_in_which_nothing_is_written_does_not_count() -> None:
    turns = TURNS.of(asyncio.get_running_loop())
    before = turns.number
    await _turn()
    await _turn()
    assert turns.number == before


async def test_a_turn_is_over_before_what_was_asked_for_after_the_first_write_in_it() -> None:
    loop = asyncio.get_running_loop()
    turns, seen = TURNS.of(loop), list[int]()
    before = turns.number
    turns.written(asyncio.get_running_loop())
    loop.call_soon(lambda: seen.append(turns.number))
    await _turn()
    assert seen == [before + 1]
