"""F1, F3, F20, F21: workers killed, frozen, told to end; every request ends once.

The numbers are those of the fault table in the notes on JetStream (section 7).
"""

import asyncio
import signal
import time

import pytest

from dialback import Requester, Settings
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support import figures
from support.accounts import balance
from support.chaos import Chaos
from support.eventually import eventually
from support.ledger import Ledger
from support.ledger_engine import CALLED
from support.queue_rig import lane_state
from support.settlements import settlements

pytestmark = pytest.mark.ci


async def test_f1_a_killed_worker_s_requests_go_to_another_or_end_with_one_error(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    hung = {"n": 5, "fault": "hang"}
    async with (
        Requester(Settings.load(server=nats_server.url)) as requester,
        Chaos(endpoint, nats_server, size=1, seed=1, ack_wait=3) as chaos,
    ):
        async with asyncio.TaskGroup() as callers:
            for i in range(4):
                for at in (0, 2):
                    callers.create_task(
                        ledger.ask(
                            requester,
                            str(endpoint),
                            hung | {"at": at},
                            request_id=f"hung-{at}-{i}",
                            expected=5,
                        )
                    )
            await chaos.alive[0].until(lambda event: event["message"] == CALLED, 8)
            await ledger.until(lambda: sum(e.items == 2 for e in ledger.entries.values()) == 4)
            killed = time.monotonic()
            await chaos.kill_worker()
            await chaos.alive[0].until(
                lambda event: event["message"] == CALLED and event["delivery"] == 2, 4
            )
            gap = time.monotonic() - killed
        account = await balance(nats_server.url, endpoint, ledger, chaos)
    assert dict(ledger.ends) == {"complete": 4, "StreamInterrupted": 4}
    assert {entry.items for entry in ledger.entries.values()} == {2, 5}
    assert not account.twice
    figures.record(
        fault="F1 SIGKILL of a worker with 8 requests, 4 before their first item",
        complete=ledger.complete,
        interrupted=ledger.ends["StreamInterrupted"],
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
        gap=gap,
    )


async def test_f3_f21_a_frozen_worker_s_requests_move_on_and_once_awake_it_settles_nothing(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    async with (
        Requester(Settings.load(server=nats_server.url)) as requester,
        Chaos(endpoint, nats_server, size=1, seed=3, ack_wait=2, slots=4) as chaos,
        settlements(queue_client, endpoint) as seen,
    ):
        (frozen,) = chaos.alive
        async with asyncio.TaskGroup() as callers:

            def ask(name: str, **request: object) -> None:
                callers.create_task(
                    ledger.ask(
                        requester, str(endpoint), {"n": 3} | request, request_id=name, expected=3
                    )
                )

            ask("held", fault="hang", at=0)
            await frozen.until(lambda event: event["message"] == CALLED)
            await eventually(
                lambda: lane_state(queue_client, endpoint), lambda lane: lane["num_waiting"] > 0
            )
            frozen.process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            for i in range(3):  # one of them into the frozen worker's open pull
                ask(f"next-{i}")
            await eventually(
                lambda: lane_state(queue_client, endpoint),
                lambda lane: lane["num_ack_pending"] == 2,
            )
            other = await chaos.start_one()
        gap = time.monotonic() - stopped
        await other.until(lambda event: event["message"] == "request finished", 4)
        before = len(seen)
        frozen.process.send_signal(signal.SIGCONT)
        # It is awake when it has served a request that only it can take.
        other.terminate()
        assert await other.exit_code() == 0
        chaos.bury(other)
        await ledger.ask(requester, str(endpoint), {"n": 3}, request_id="awake", expected=3)
        await frozen.until(lambda e: e["message"] == "delivery ended" and e["end"] == "superseded")
        account = await balance(nats_server.url, endpoint, ledger, chaos)
    held_by_frozen = [one for one in seen[before:] if one.request in {1, 2, 3, 4}]
    assert [one for one in held_by_frozen if not one.renewal] == []
    assert dict(ledger.ends) == {"complete": 5}
    assert not account.twice
    assert not account.unlogged
    figures.record(
        fault="F3, F21 SIGSTOP of a worker with 1 request and an open pull, then SIGCONT",
        complete=ledger.complete,
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
        settled_by_the_woken=len([one for one in held_by_frozen if not one.renewal]),
        gap=gap,
    )


async def test_f20_sigterm_under_load_interrupts_redelivers_and_loses_nothing(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    async with (
        Requester(Settings.load(server=nats_server.url)) as requester,
        Chaos(endpoint, nats_server, size=2, seed=20, slots=8) as chaos,
    ):
        async with asyncio.TaskGroup() as callers:
            for i in range(200):
                callers.create_task(
                    ledger.ask(
                        requester,
                        str(endpoint),
                        {"n": 5, "delay": 0.02},
                        request_id=f"r-{i}",
                        expected=5,
                    )
                )
            for _ in range(4):
                await ledger.completes(10)
                assert await chaos.roll_worker() == 0
        redelivered = (await lane_state(queue_client, endpoint))["num_redelivered"]
        account = await balance(nats_server.url, endpoint, ledger, chaos)
    assert dict(ledger.ends) == {"complete": 200}
    assert (account.reruns, redelivered, account.unlogged, account.twice) == (0, 0, set(), {})
    figures.record(
        fault="F20 SIGTERM of 4 workers in turn under load",
        submitted=ledger.submitted,
        complete=ledger.complete,
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
        redelivered=redelivered,
        exit_code=0,
    )
