"""F5: the broker is killed and comes back on the same store, under load."""

import asyncio
import itertools
import time

import pytest

from dialback import Requester, Settings
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support import figures
from support.accounts import balance
from support.chaos import Chaos
from support.ledger import Ledger

pytestmark = pytest.mark.ci

CALLERS = 32
ROUNDS = 3


async def test_f5_after_each_kill_of_the_broker_the_work_goes_on_and_nothing_is_lost(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    stopped = asyncio.Event()
    numbers = itertools.count()
    gaps: list[float] = []
    waits: list[float] = []

    async with (
        Requester(Settings.load(server=own_server.url)) as requester,
        Chaos(endpoint, own_server, size=2, seed=5, slots=8, ack_wait=3) as chaos,
    ):

        async def caller() -> None:
            while not stopped.is_set():
                await ledger.ask(
                    requester,
                    str(endpoint),
                    {"n": 5, "delay": 0.01},
                    request_id=f"r-{next(numbers)}",
                    expected=5,
                )

        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(caller())
            for _ in range(ROUNDS):
                await ledger.completes(100)
                await chaos.restart_broker(down=0.5)
                back = time.monotonic()
                await ledger.completes(1)
                gaps.append(time.monotonic() - back)
                await ledger.completes(CALLERS)
                waits.append(time.monotonic() - back)
            await ledger.completes(100)
            stopped.set()
        account = await balance(own_server.url, endpoint, ledger, chaos)
    assert dict(ledger.ends) == {"complete": ledger.submitted}
    assert not account.letters
    figures.record(
        fault=f"F5 {ROUNDS} times SIGKILL of the broker and restart, {CALLERS} callers",
        submitted=ledger.submitted,
        complete=ledger.complete,
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
        run_again=account.reruns,
        second_runs_that_met_a_spent_subject=len(account.twice),
        longest_gap=max(gaps),
        longest_until_32_more=max(waits),
    )
