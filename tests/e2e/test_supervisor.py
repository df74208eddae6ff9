"""A supervisor and its worker processes: deaths, restarts, signals. All of it is real."""

import asyncio
import os
import signal
from collections import Counter

import pytest

from dialback import EndState, Requester, Settings, StreamInterrupted
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.queue_rig import nothing_left
from support.supervised import ENGINES, all_started, call_of, events, pids
from support.worker_process import WorkerProcess, worker_process

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

REQUESTS = 400  # enough for some to be left when the last process is killed


def requester_of(server: EmbeddedServer) -> Requester:
    return Requester(Settings.load(server=server.url))


async def test_a_killed_process_s_message_goes_to_another_one_long_before_its_lease_ends(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    engine = f"{ENGINES}:first_delivery_hangs"
    settings = {"processes": 2, "ack_wait": 3600}  # no test waits that long
    async with (
        worker_process(engine, endpoint, nats_server.url, **settings) as supervisor,
        requester_of(nats_server) as requester,
    ):
        await all_started(supervisor, 2)
        async with requester.generate(str(endpoint), {}) as stream:
            first = await call_of(supervisor, stream.request_id, 1)
            os.kill(first["pid"], signal.SIGKILL)
            (item,) = [item async for item in stream]
        assert item["delivery"] == 2
        assert item["pid"] != first["pid"]
        assert stream.end is EndState.COMPLETE
        await nothing_left(queue_client, endpoint)
        await all_started(supervisor, 3)  # it is replaced
        supervisor.terminate()
        assert await supervisor.exit_code() == 0
        (death,) = [e for e in events(supervisor, "worker process ended") if e["level"] == "ERROR"]
        assert (death["pid"], death["exit_code"], death["held"]) == (first["pid"], 137, 1)
        assert len(events(supervisor, "message of a dead process handed back")) == 1


async def test_a_process_that_ends_with_0_in_mid_request_has_died_all_the_same(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    engine = f"{ENGINES}:first_delivery_exits"
    settings = {"processes": 2, "ack_wait": 3600}
    async with (
        worker_process(engine, endpoint, nats_server.url, **settings) as supervisor,
        requester_of(nats_server) as requester,
    ):
        await all_started(supervisor, 2)
        async with requester.generate(str(endpoint), {}) as stream:
            assert [item["delivery"] async for item in stream] == [2]
        await all_started(supervisor, 3)
        await nothing_left(queue_client, endpoint)
        supervisor.terminate()
        assert await supervisor.exit_code() == 0
    first, *_ = events(supervisor, "worker process ended")
    assert (first["exit_code"], first["held"], first["level"]) == (0, 1, "ERROR")


async def test_with_all_processes_killed_in_turn_under_load_every_request_is_accounted_for(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    # What a killed process had not read yet, nobody can hand back: that waits for its lease.
    settings = {"processes": 3, "slots": 4, "ack_wait": 5}
    async with (
        worker_process(
            "examples.counter:generate", endpoint, nats_server.url, **settings
        ) as supervisor,
        requester_of(nats_server) as requester,
    ):
        await all_started(supervisor, 3)

        async def ask() -> str:
            async with requester.generate(str(endpoint), {"n": 3, "delay": 0.1}) as stream:
                try:
                    items = [item["i"] async for item in stream]
                except StreamInterrupted:
                    return "interrupted"
                assert items == [0, 1, 2]
                return "complete"

        asked = [asyncio.create_task(ask()) for _ in range(REQUESTS)]
        for number, pid in enumerate(pids(supervisor), 1):
            served = len(supervisor.finished)
            await supervisor.until(lambda e: e["message"] == "request finished", served + 12)
            os.kill(pid, signal.SIGKILL)
            await all_started(supervisor, 3 + number)
        ended = Counter(await asyncio.gather(*asked))
        await nothing_left(queue_client, endpoint)
        supervisor.terminate()
        assert await supervisor.exit_code() == 0

    assert ended.total() == REQUESTS
    assert ended["interrupted"] <= 3 * 4, "no more than the killed processes' slots"


async def test_sigterm_drains_all_processes_and_the_exit_code_is_0(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    engine, settings = "examples.counter:generate", {"processes": 2, "slots": 1}
    async with (
        worker_process(engine, endpoint, nats_server.url, **settings) as supervisor,
        requester_of(nats_server) as requester,
    ):
        await all_started(supervisor, 2)
        names = {event["worker"].split("-")[-2] for event in events(supervisor, "worker started")}
        ports = {event["status_port"] for event in events(supervisor, "worker started")}
        request = {"n": 10, "delay": 0.1}
        one, other = (requester.generate(str(endpoint), request) for _ in range(2))
        async with one, other:
            assert [await anext(one), await anext(other)] == [{"i": 0}, {"i": 0}]
            supervisor.terminate()
            await supervisor.until(lambda event: event["message"] == "draining", 2)
            assert [item["i"] async for item in one] == list(range(1, 10))
            assert [item["i"] async for item in other] == list(range(1, 10))
        assert await supervisor.exit_code() == 0
        await nothing_left(queue_client, endpoint)

    assert (names, len(ports)) == ({"0", "1"}, 2)
    assert [event["exit_code"] for event in events(supervisor, "worker process ended")] == [0, 0]


async def test_ctrl_c_reaches_the_processes_once_through_the_supervisor(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with worker_process(
        "examples.echo:generate", endpoint, nats_server.url, processes=2
    ) as supervisor:
        await all_started(supervisor, 2)
        groups = [os.getpgid(pid) for pid in pids(supervisor)]
        assert os.getpgid(supervisor.process.pid) not in groups, "a terminal signals a group"
        supervisor.process.send_signal(signal.SIGINT)
        assert await supervisor.exit_code() == 0
    counts = [event["count"] for event in events(supervisor, "signal received")]
    assert counts == [1, 1, 1]  # the supervisor's, and one for each process


async def test_processes_that_are_stopped_before_they_are_ready_have_dropped_nothing(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with worker_process(
        "examples.echo:generate", endpoint, nats_server.url, processes=2
    ) as supervisor:
        await supervisor.until(lambda event: event["message"] == "worker process started", 2)
        supervisor.terminate()
        assert await supervisor.exit_code() == 0
    assert not gave_up(supervisor)


async def test_a_process_that_outlives_the_budget_is_killed_and_its_message_handed_back(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    engine = f"{ENGINES}:first_delivery_blocks"
    settings = {"processes": 2, "ack_wait": 3600, "shutdown_budget": 1}
    async with (
        worker_process(engine, endpoint, nats_server.url, **settings) as supervisor,
        requester_of(nats_server) as requester,
    ):
        await all_started(supervisor, 2)
        async with requester.generate(str(endpoint), {"seconds": 3600}, timeout=600) as stream:
            await call_of(supervisor, stream.request_id, 1)
            supervisor.terminate()
            assert await supervisor.exit_code() == 137
            async with worker_process(
                engine, endpoint, nats_server.url, ack_wait=3600
            ) as next_worker:
                await next_worker.started()
                assert [item["delivery"] async for item in stream] == [2]
                await nothing_left(queue_client, endpoint)


async def test_a_second_signal_hurries_the_processes_and_shows_in_the_exit_code(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with (
        worker_process(
            f"{ENGINES}:first_delivery_hangs", endpoint, nats_server.url, processes=2
        ) as supervisor,
        requester_of(nats_server) as requester,
    ):
        await all_started(supervisor, 2)
        # A resumable stream would be handed over to another worker, and nothing be interrupted.
        async with requester.generate(str(endpoint), {}, resumable=False) as stream:
            await call_of(supervisor, stream.request_id, 1)
            supervisor.terminate()
            await supervisor.until(lambda event: event["message"] == "draining", 2)
            supervisor.terminate()
            code = await supervisor.exit_code()
    assert code == 143
    ended = [event["outcome"] for event in supervisor.finished]
    assert ended == ["interrupted"]


async def test_when_the_supervisor_is_killed_its_processes_drain_and_end(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    engine = "examples.counter:generate"
    async with (
        worker_process(engine, endpoint, nats_server.url, processes=2) as supervisor,
        requester_of(nats_server) as requester,
    ):
        await all_started(supervisor, 2)
        async with requester.generate(str(endpoint), {"n": 10, "delay": 0.1}) as stream:
            assert await anext(stream) == {"i": 0}
            await supervisor.kill()
            assert [item["i"] async for item in stream] == list(range(1, 10))
        await supervisor.exit_code()  # the log ends when the last process that writes it does
        await nothing_left(queue_client, endpoint)
    assert len(events(supervisor, "the supervisor is gone")) == 2
    assert [event["exit_code"] for event in events(supervisor, "worker ended")] == [0, 0]


async def test_processes_that_never_become_ready_are_given_up_after_five_starts_each(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    engine = f"{ENGINES}:DiesAtTheStart"
    async with worker_process(engine, endpoint, nats_server.url, processes=2) as supervisor:
        assert await supervisor.exit_code() == 9
    starts = Counter(e["worker"] for e in events(supervisor, "worker process started"))
    assert sorted(starts.values())[0] >= 5
    delays = [
        event["delay"]
        for event in events(supervisor, "starting a worker process again")
        if event["worker"].endswith("-0")
    ]
    assert delays == sorted(delays), "the pauses grow"
    assert gave_up(supervisor) == ["each worker process ended 5 times without becoming ready"]


async def test_wrong_settings_are_not_tried_twice(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    engine = "examples.nowhere:generate"
    async with worker_process(engine, endpoint, nats_server.url, processes=2) as supervisor:
        assert await supervisor.exit_code() == 2
    assert len(events(supervisor, "worker process started")) == 2
    assert len(gave_up(supervisor)) >= 1
    assert "will not help" in gave_up(supervisor)[0]


async def test_without_nats_the_supervisor_still_ends_with_its_processes_code(
    endpoint: Endpoint,
) -> None:
    engine, nowhere = "examples.echo:generate", "nats://127.0.0.1:1"
    settings = {"processes": 2, "connect_within": 0.2}
    async with worker_process(engine, endpoint, nowhere, **settings) as supervisor:
        assert await supervisor.exit_code() == 69
    warnings = [e for e in supervisor.log if e["message"].startswith("not connected to NATS:")]
    assert warnings


def gave_up(supervisor: WorkerProcess) -> list[str]:
    """The reasons for which the supervisor gave up."""
    marks = [e["message"] for e in supervisor.log if e["message"].startswith("giving up: ")]
    return [mark.removeprefix("giving up: ") for mark in marks]
