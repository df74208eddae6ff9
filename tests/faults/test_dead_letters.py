"""F12, F13: a request that kills its workers, and a worker killed before it could say TERM."""

import asyncio

import pytest

from dialback import Requester, Settings
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support import figures
from support.accounts import balance
from support.chaos import Chaos
from support.ledger import Ledger
from support.queue_rig import lane_state

pytestmark = pytest.mark.ci

POISON = {"n": 3, "fault": "die", "at": 0}
MAX_CRASHES = 3


async def test_f12_a_request_that_kills_three_workers_is_one_dead_letter_and_its_caller_is_told(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    stopped = asyncio.Event()

    async def innocents(requester: Requester, name: str) -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            await ledger.ask(
                requester,
                str(endpoint),
                {"n": 3, "delay": 0.01},
                request_id=f"{name}-{number}",
                expected=3,
            )

    async with (
        Requester(Settings.load(server=nats_server.url)) as requester,
        Chaos(endpoint, nats_server, size=2, seed=12, ack_wait=5, slots=4) as chaos,
    ):
        async with chaos.replacing(), asyncio.TaskGroup() as callers:
            for i in range(3):
                callers.create_task(innocents(requester, f"good-{i}"))
            poison = await ledger.ask(
                requester, str(endpoint), POISON, request_id="poison", expected=3, timeout=100
            )
            stopped.set()
        account = await balance(nats_server.url, endpoint, ledger, chaos)
    assert (poison.end, "poison" in account.letter_lines()[0]) == ("Unknown", True)
    assert [letter.request_id for letter in account.letters] == ["poison"]
    assert account.outcomes["poison"] == ["poison"]
    assert [number for _, number in account.calls["poison"]] == list(range(1, MAX_CRASHES + 1))
    deaths = [action for action in chaos.actions if action.what == "death of worker"]
    assert len(deaths) == MAX_CRASHES
    assert set(ledger.ends) <= {"complete", "StreamInterrupted", "Unknown"}
    figures.record(
        fault=f"F12 a request that kills its worker, beside {ledger.submitted - 1} good ones",
        worker_deaths=len(deaths),
        dead_letters=len(account.letters),
        complete=ledger.complete,
        interrupted=ledger.ends["StreamInterrupted"],
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
    )


async def test_f13_a_worker_killed_between_the_dead_letter_and_the_term_leaves_one_letter(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with Chaos(
        endpoint,
        nats_server,
        size=1,
        seed=13,
        engine="tests.support.dies_before_term:generate",
        ack_wait=1,
    ) as chaos:
        (doomed,) = chaos.alive
        await queue_client.publisher.publish(
            endpoint.request_subject(Lane.NORMAL, "bad"), b"no two-part message", {}
        )
        assert await doomed.exit_code() == -9
        chaos.bury(doomed)
        state = await queue_client.api.stream_info(endpoint.dead_stream)
        pending = (await lane_state(queue_client, endpoint))["num_ack_pending"]
        assert (state["state"]["messages"], pending) == (1, 1), "the letter, and its message"
        heir = await chaos.start_one("tests.support.ledger_engine:generate")
        await heir.until(lambda event: event["message"] == "request finished")
        account = await balance(
            nats_server.url, endpoint, Ledger(), chaos, foreign=frozenset({"bad", *_ids(heir.log)})
        )
    assert [letter.outcome for letter in account.letters] == ["invalid"]
    assert [len(outcomes) for outcomes in account.outcomes.values()] == [1]
    figures.record(
        fault="F13 SIGKILL between dead letter and TERM",
        dead_letters=len(account.letters),
        left_in_the_queue=0,
    )


def _ids(log: list[dict[str, str]]) -> list[str]:
    return [event["request_id"] for event in log if event["message"] == "request finished"]
