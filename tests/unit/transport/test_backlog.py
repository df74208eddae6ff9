import pytest

from dialback.transport.backlog import MAX_BUFFERED_BYTES, MAX_BUFFERED_ITEMS, Backlog


async def test_items_come_out_in_the_order_of_batches_and_within_them() -> None:
    backlog = Backlog()
    backlog.put([1, 2], 20)
    assert backlog.take() == 1
    backlog.put([3], 10)
    backlog.put([4, 5], 20)
    assert [backlog.take() for _ in range(backlog.size)] == [2, 3, 4, 5]
    assert backlog.size == 0


async def test_it_is_full_by_number_whatever_the_batches() -> None:
    backlog = Backlog()
    backlog.put(list(range(MAX_BUFFERED_ITEMS - 1)), 1)
    assert not backlog.full
    backlog.put(["last"], 1)
    assert backlog.full
    while not backlog.roomy:
        backlog.take()
    assert backlog.size == MAX_BUFFERED_ITEMS // 2


async def test_it_is_full_by_bytes_until_the_large_batch_is_begun() -> None:
    backlog = Backlog()
    backlog.put(["small"], 1)
    backlog.put(["large", "with it"], MAX_BUFFERED_BYTES)
    assert backlog.full
    assert backlog.take() == "small"
    assert backlog.full
    assert backlog.take() == "large"
    assert backlog.roomy
    assert backlog.size == 1


async def test_its_reader_is_woken_by_a_batch() -> None:
    backlog = Backlog()
    change = backlog.change()
    assert not change.done()
    backlog.put(["a"], 1)
    await change
    assert backlog.take() == "a"


async def test_a_reader_that_gave_up_is_not_woken() -> None:
    backlog = Backlog()
    backlog.change().cancel()
    backlog.wake()
    change = backlog.change()
    backlog.wake()
    await change


async def test_it_has_one_reader_at_a_time() -> None:
    backlog = Backlog()
    change = backlog.change()
    with pytest.raises(RuntimeError, match="one reader at a time"):
        backlog.change()
    backlog.put(["a"], 1)
    await change
    assert not backlog.change().done()
