"""F10, F14, F15, F17, F22: consumers deleted, ids used twice, full queues, many pulls, cancels."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import orjson
import pytest
from nats.aio.subscription import Subscription

from dialback import Requester, Settings
from dialback.errors import DuplicateRequestError
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.delivery import ACK, nak_body
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support import figures
from support.accounts import balance
from support.chaos import Chaos
from support.eventually import eventually
from support.ledger import Ledger
from support.ledger_engine import CALLED
from support.queue_rig import lane_state, nothing_left, provision, put, stored, take

pytestmark = pytest.mark.ci

PULLS = 1_000
_AT_ONCE = 50  # connections that are opened at the same time
_NS = 1_000_000_000


async def test_f10_deleted_consumers_are_made_again_and_no_caller_notices(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    ledger = Ledger()

    async with (
        Requester(Settings.load(server=nats_server.url)) as requester,
        Chaos(endpoint, nats_server, size=2, seed=10, slots=8, ack_wait=3) as chaos,
    ):
        async with asyncio.TaskGroup() as callers:
            for i in range(300):
                callers.create_task(
                    ledger.ask(
                        requester,
                        str(endpoint),
                        {"n": 5, "delay": 0.02},
                        request_id=f"r-{i}",
                        expected=5,
                    )
                )
            for _ in range(2):
                await ledger.completes(50)
                for lane in Lane:
                    await queue_client.api.request(f"CONSUMER.DELETE.{endpoint.stream}.{lane}")
        account = await balance(nats_server.url, endpoint, ledger, chaos)
    assert dict(ledger.ends) == {"complete": 300}
    assert not account.letters
    figures.record(
        fault="F10 all consumers deleted twice under load",
        submitted=ledger.submitted,
        complete=ledger.complete,
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
        second_runs_that_met_a_spent_subject=len(account.twice),
    )


async def test_f14_an_id_in_use_is_refused_and_after_a_restart_its_second_run_ends_quietly(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    request = {"n": 3, "delay": 0.1}  # a faster one could be over before it hears of its reset
    client = await QueueClient.open(
        ServerAddress(url=own_server.url), name="duplicates", role="operator"
    )
    await provision(client, endpoint, ack_wait=3.0)
    async with Requester(Settings.load(server=own_server.url)) as requester:
        async with asyncio.TaskGroup() as callers:
            callers.create_task(
                ledger.ask(requester, str(endpoint), request, request_id="same", expected=3)
            )
            await eventually(lambda: stored(client, endpoint.stream))
            with pytest.raises(DuplicateRequestError):
                async with requester.generate(str(endpoint), {"n": 3}, request_id="same"):
                    pass
            original = await client.api.get_exact(endpoint.stream, 1)
            async with Chaos(endpoint, own_server, size=1, seed=14, ack_wait=3) as chaos:
                await chaos.alive[0].until(lambda event: event["message"] == "request finished")
                await nothing_left(client, endpoint)
                await chaos.restart_broker()
                again = await client.publisher.publish(
                    original.subject, original.payload, original.headers
                )
                await chaos.alive[0].until(lambda e: e["message"] == "request finished", 2)
                account = await balance(own_server.url, endpoint, ledger, chaos)
    await client.close()
    assert not again.duplicate, "R1: the ids of what was served are forgotten"
    assert dict(ledger.ends) == {"complete": 1}
    assert account.outcomes == {"same": ["completed", "client_gone"]}
    assert not account.letters
    figures.record(
        fault="F14 the same id live, and again after a restart",
        refused=1,
        second_runs_that_met_a_spent_subject=1,
        streams_the_caller_saw=1,
    )


async def test_f15_a_full_queue_refuses_with_a_typed_error_and_drops_nothing(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    room = 20
    await provision(queue_client, endpoint, ack_wait=3.0, max_messages=room)
    async with Requester(Settings.load(server=nats_server.url)) as requester:

        async def ask(number: int) -> None:
            await ledger.ask(
                requester, str(endpoint), {"n": 3}, request_id=f"r-{number}", expected=3
            )

        async with asyncio.TaskGroup() as callers:
            for number in range(room):
                callers.create_task(ask(number))
            await eventually(
                lambda: stored(queue_client, endpoint.stream), lambda count: count == room
            )
            for number in range(room, room + 5):
                await ask(number)
            assert await stored(queue_client, endpoint.stream) == room
            async with Chaos(
                endpoint, nats_server, size=1, seed=15, ack_wait=3, max_messages=room
            ) as chaos:
                account = await balance(nats_server.url, endpoint, ledger, chaos)
    assert dict(ledger.ends) == {"complete": room, "QueueFullError": 5}
    assert account.outcomes == {f"r-{n}": ["completed"] for n in range(room)}
    figures.record(
        fault=f"F15 a queue of {room} is full",
        complete=room,
        refused=5,
        lost=ledger.lost,
        doubled_or_missing=ledger.wrong,
    )


async def test_f17_a_thousand_waiting_pulls_are_all_served(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    closes = AsyncExitStack()
    client = await QueueClient.open(
        ServerAddress(url=own_server.url), name="thousand", role="operator"
    )
    closes.push_async_callback(client.close)
    await provision(client, endpoint)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def pod() -> Subscription:
        async with gate:
            connection = await nats.connect(own_server.url)  # pyright: ignore[reportUnknownMemberType]
        closes.push_async_callback(connection.close)
        inbox = await connection.subscribe(connection.new_inbox())  # pyright: ignore[reportUnknownMemberType]
        pull = {"batch": 1, "expires": 90 * _NS, "idle_heartbeat": 10 * _NS}
        await connection.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{endpoint.stream}.{Lane.NORMAL}",
            orjson.dumps(pull),
            reply=inbox.subject,
        )
        return inbox

    inboxes = await asyncio.gather(*(pod() for _ in range(PULLS)))
    state = await eventually(
        lambda: lane_state(client, endpoint), lambda lane: lane["num_waiting"] >= PULLS
    )
    before = _cpu_seconds(own_server.pid)
    await asyncio.sleep(5)  # the time over which idle CPU is measured
    idle = (_cpu_seconds(own_server.pid) - before) / 5

    async def served(inbox: Subscription) -> int:
        while True:
            message = await inbox.next_msg(timeout=60)
            if message.reply.startswith("$JS.ACK"):
                await client.connection.request(message.reply, ACK, timeout=30)
                return int(message.reply.split(".")[5])

    await asyncio.gather(*(put(client, endpoint, f"r-{i}") for i in range(PULLS)))
    sequences = await asyncio.gather(*(served(inbox) for inbox in inboxes))
    await nothing_left(client, endpoint)
    await closes.aclose()
    assert sorted(sequences) == list(range(1, PULLS + 1))
    figures.record(
        fault="F17 1,000 connections with a waiting pull each",
        num_waiting=state["num_waiting"],
        served=len(set(sequences)),
        server_cpu_while_idle=f"{idle:.1%} of a core",
    )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def test_f22_leaving_cancels_a_request_that_is_queued_delayed_or_running(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    ledger = Ledger()
    await provision(queue_client, endpoint, ack_wait=3.0)
    async with Requester(Settings.load(server=nats_server.url)) as requester:
        await ledger.ask(
            requester, str(endpoint), {"n": 3}, request_id="queued", expected=3, leave_after=0
        )
        assert await stored(queue_client, endpoint.stream) == 0

        ledger.submit("delayed", 3)
        async with requester.generate(str(endpoint), {"n": 3}, request_id="delayed"):
            message, _ = await take(queue_client, endpoint)
            await queue_client.settler.confirm(message, nak_body(3600))
        ledger.end("delayed", "left")
        await nothing_left(queue_client, endpoint)

        async with Chaos(endpoint, nats_server, size=1, seed=22, ack_wait=3) as chaos:
            await ledger.ask(
                requester,
                str(endpoint),
                {"n": 1000, "delay": 0.01},
                request_id="running",
                expected=1000,
                leave_after=2,
            )
            await chaos.alive[0].until(lambda event: event["message"] == "request finished")
            account = await balance(nats_server.url, endpoint, ledger, chaos)
    assert {event["request_id"] for event in chaos.events(CALLED)} == {"running"}
    assert account.outcomes == {"running": ["killed"]}
    assert account.unlogged == {"queued", "delayed"}
    figures.record(
        fault="F22 the caller leaves: queued, delayed, running", cancelled=3, run_afterwards=0
    )
