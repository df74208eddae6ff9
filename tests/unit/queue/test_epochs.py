import asyncio
import logging

import pytest

from dialback.errors import ServerUnavailableError
from dialback.queue.epochs import Epochs

OLD, OLD_NS = "2026-01-02T03:04:05.000000006Z", 1_767_323_045_000_000_006
NEW, NEW_NS = "2026-01-02T03:04:06+00:00", 1_767_323_046_000_000_000


class Server:
    """Says when the consumers were created, when it is asked."""

    def __init__(self) -> None:
        self.created = {"normal": OLD}
        self.asked = 0
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.epochs = Epochs(self.created, self._refresh)

    async def _refresh(self) -> None:
        self.asked += 1
        await self.gate.wait()
        if self.fails:
            raise ServerUnavailableError("no leader")
        self.created["normal"] = self.created["low"] = NEW


async def test_what_the_start_of_the_worker_found_is_not_asked_again() -> None:
    server = Server()
    assert [await server.epochs.of("normal", nth) for nth in (4, 5, 5, 9)] == [OLD_NS] * 4
    assert server.asked == 0


async def test_a_count_that_goes_back_is_a_new_consumer() -> None:
    server = Server()
    epochs = [await server.epochs.of("normal", nth) for nth in (8, 9, 1, 2, 3)]
    assert epochs == [OLD_NS, OLD_NS, NEW_NS, NEW_NS, NEW_NS]
    assert server.asked == 1


async def test_deliveries_that_come_meanwhile_wait_for_the_answer() -> None:
    server = Server()
    await server.epochs.of("normal", 9)
    server.gate.clear()
    waiting = [asyncio.create_task(server.epochs.of("normal", nth)) for nth in (1, 2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    server.gate.set()
    assert await asyncio.gather(*waiting) == [NEW_NS, NEW_NS]
    assert server.asked == 1


async def test_without_an_answer_the_last_known_epoch_stands_and_the_next_delivery_asks_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    await server.epochs.of("normal", 9)
    server.fails = True
    assert await server.epochs.of("normal", 1) == OLD_NS
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    server.fails = False
    assert await server.epochs.of("normal", 2) == NEW_NS


async def test_an_unknown_lane_is_asked_for_and_zero_if_nobody_knows_it() -> None:
    server = Server()
    assert await server.epochs.of("low", 1) == NEW_NS
    assert await server.epochs.of("high", 1) == 0


async def test_an_epoch_that_is_known_is_told_at_once() -> None:
    server = Server()
    assert [server.epochs.known("normal", nth) for nth in (4, 5, 5, 9)] == [OLD_NS] * 4


async def test_an_epoch_that_has_to_be_asked_for_is_not_known() -> None:
    server = Server()
    server.epochs.known("normal", 9)
    assert server.epochs.known("high", 1) is None
    assert server.epochs.known("normal", 1) is None
    assert await server.epochs.of("normal", 1) == NEW_NS
    assert server.epochs.known("normal", 2) == NEW_NS


async def test_no_epoch_is_known_while_it_is_being_asked_for() -> None:
    server = Server()
    server.epochs.known("normal", 9)
    server.gate.clear()
    asking = asyncio.create_task(server.epochs.of("normal", 1))
    await asyncio.sleep(0)
    assert server.epochs.known("normal", 10) is None
    server.gate.set()
    await asking
