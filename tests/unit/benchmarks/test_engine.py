import time

import pytest

from benchmarks.peers.engine import generate


@pytest.mark.parametrize(("pause", "turn"), [(0, False), (0, True), (1e-9, False)])
async def test_items_are_numbered_and_stamped(pause: float, turn: bool) -> None:
    request = {"n": 3, "size": 0, "pause": pause, "turn": turn}
    before = time.monotonic_ns()
    items = [item async for item in generate(request, None)]
    assert [item["i"] for item in items] == [0, 1, 2]
    stamps = [before, *(item["t"] for item in items), time.monotonic_ns()]
    assert stamps == sorted(stamps)


async def test_an_item_has_as_much_text_as_asked_for() -> None:
    request = {"n": 1, "size": 7, "pause": 0, "turn": False}
    assert [item["text"] async for item in generate(request, None)] == ["xxxxxxx"]
