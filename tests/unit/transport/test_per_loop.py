"""What the connections of an event loop share is theirs alone, and keeps nothing alive."""

import asyncio
import gc
import weakref

from dialback.transport.per_loop import PerLoop


class Shared:
    """Something that holds what waits, as the departures of a loop do."""

    def __init__(self) -> None:
        self.waiting: list[object] = []


async def test_who_asks_on_one_loop_has_the_same_one() -> None:
    each, loop = PerLoop(Shared), asyncio.get_running_loop()
    one = each.of(loop)
    assert each.of(loop) is one


async def test_each_loop_has_one_of_its_own() -> None:
    each = PerLoop(Shared)

    async def mine() -> Shared:
        return each.of(asyncio.get_running_loop())

    first = await mine()
    assert await asyncio.to_thread(asyncio.run, mine()) is not first


async def test_when_nobody_is_left_the_next_one_gets_another() -> None:
    each, loop = PerLoop(Shared), asyncio.get_running_loop()
    gone = weakref.ref(each.of(loop))
    assert gone() is None
    assert each.of(loop).waiting == []


def test_a_loop_that_ended_with_something_waiting_on_it_is_forgotten() -> None:
    each = PerLoop(Shared)
    loop = asyncio.new_event_loop()
    user = each.of(loop)
    user.waiting.append((loop, user))  # as a connection does, which knows both
    loop.close()
    left = weakref.ref(loop), weakref.ref(user)
    del loop, user
    gc.collect()
    assert [one() for one in left] == [None, None]
