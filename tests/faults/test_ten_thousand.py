"""The big run: kills every two seconds, two broker restarts, and a ledger that must add up.

``pytest tests/faults/test_ten_thousand.py`` runs 1,000 requests (marked ``ci``) and 10,000.
"""

import asyncio
import random
import sys

import pytest

from dialback import Requester, Settings
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support import figures
from support.accounts import balance
from support.chaos import Chaos, every
from support.ledger import Ledger

WORKERS = 4
KILL_EVERY = 2.0  # seconds
LEAST_COMPLETE = 0.97
SEED = 20240607


def _request(dice: random.Random) -> dict[str, object]:
    """A mixture: mostly short answers, some long or large ones."""
    kind = dice.random()
    if kind < 0.8:
        return {"n": 5, "delay": 0.01}
    if kind < 0.95:
        return {"n": 20, "delay": 0.01}
    return {"n": 5, "delay": 0.01, "size": 20_000}


@pytest.mark.parametrize(
    ("requests", "per_second"),
    [
        pytest.param(1_000, 60, marks=[pytest.mark.ci, pytest.mark.timeout(300)]),
        pytest.param(10_000, 110, marks=pytest.mark.timeout(1200)),
    ],
)
async def test_every_request_ends_once_whatever_is_killed(
    own_server: EmbeddedServer, endpoint: Endpoint, requests: int, per_second: int
) -> None:
    ledger, dice = Ledger(), random.Random(SEED)  # noqa: S311 -- repeatable
    async with (
        Requester(Settings.load(server=own_server.url)) as requester,
        Chaos(endpoint, own_server, size=WORKERS, seed=SEED, slots=8, ack_wait=3) as chaos,
    ):
        async with asyncio.TaskGroup() as callers, every(KILL_EVERY, chaos.kill_worker):
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for number in range(requests):
                request = _request(dice)
                callers.create_task(
                    ledger.ask(
                        requester,
                        str(endpoint),
                        request,
                        request_id=f"r-{number}",
                        expected=int(str(request["n"])),
                        timeout=120.0,
                    )
                )
                if number in {requests // 3, 2 * requests // 3}:
                    await chaos.restart_broker()
                await asyncio.sleep(begun + number / per_second - loop.time())
            await ledger.until(lambda: not ledger.ends["open"])  # kills go on until then
            duration = loop.time() - begun
        account = await balance(own_server.url, endpoint, ledger, chaos)
    for line in [ledger.row(), *map(str, chaos.actions), *account.letter_lines()]:
        sys.stdout.write(line + "\n")
    assert ledger.submitted == requests
    assert ledger.complete >= LEAST_COMPLETE * requests
    assert set(ledger.ends) <= {"complete", "StreamInterrupted"}
    kills = sum(action.what == "SIGKILL worker" for action in chaos.actions)
    figures.record(
        fault=f"{kills} SIGKILLs of 4 workers, 2 of the broker, seed {SEED}",
        submitted=ledger.submitted,
        complete=ledger.complete,
        interrupted=ledger.ends["StreamInterrupted"],
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
        dead_letters=len(account.letters),
        run_again=account.reruns,
        second_runs_that_met_a_spent_subject=len(account.twice),
        duration=duration,
    )
