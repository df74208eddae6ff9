"""Engines that block the event loop: for a while, and for longer than anybody should wait."""

import pytest

from dialback import EndState, Requester, Settings
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.queue_rig import lane_state, nothing_left
from support.supervised import ENGINES, call_of, events
from support.worker_process import worker_process

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

ENGINE = f"{ENGINES}:first_delivery_blocks"


async def test_a_loop_that_is_blocked_for_three_leases_keeps_its_message_from_idle_workers(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with (
        worker_process(ENGINE, endpoint, nats_server.url, ack_wait=1) as worker,
        Requester(Settings.load(server=nats_server.url)) as requester,
    ):
        await worker.started()
        async with requester.generate(str(endpoint), {"seconds": 3.5}) as stream:
            await call_of(worker, stream.request_id, 1)
            async with worker_process(ENGINE, endpoint, nats_server.url, ack_wait=1) as idle:
                await idle.started()
                assert [item["delivery"] async for item in stream] == [1]
                state = await lane_state(queue_client, endpoint)
        finished = await worker.outcome_of(stream.request_id)
        await nothing_left(queue_client, endpoint)

    assert (finished["outcome"], finished["delivery"]) == ("completed", 1)
    assert (state["num_redelivered"], state["delivered"]["consumer_seq"]) == (0, 1)
    assert not events(idle, "engine called")


async def test_a_wedged_engine_s_message_moves_on_and_the_worker_that_wakes_settles_nothing(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    settings = {"ack_wait": 1, "stuck_limit": 2}
    async with (
        worker_process(ENGINE, endpoint, nats_server.url, **settings) as wedged,
        Requester(Settings.load(server=nats_server.url)) as requester,
    ):
        await wedged.started()
        async with requester.generate(str(endpoint), {"seconds": 12}) as stream:
            first = await call_of(wedged, stream.request_id, 1)
            async with worker_process(ENGINE, endpoint, nats_server.url, **settings) as other:
                await other.started()
                (item,) = [item async for item in stream]
                # The pull that stood when it froze may have taken the second delivery.
                assert item["delivery"] in (2, 3)
                assert item["pid"] != first["pid"]
                assert stream.end is EndState.COMPLETE
                await other.outcome_of(stream.request_id)
                other.terminate()
                assert await other.exit_code() == 0
        await wedged.until(lambda e: e["message"] == "delivery ended" and e["end"] == "superseded")
        # Awake, and alone: it goes on pulling.
        async with requester.generate(str(endpoint), {}) as stream:
            assert [item["pid"] async for item in stream] == [first["pid"]]
        finished = await wedged.outcome_of(stream.request_id)
        await nothing_left(queue_client, endpoint)
        wedged.terminate()
        assert await wedged.exit_code() == 0

    assert finished["outcome"] == "completed"
    assert [event["request_id"] for event in wedged.finished] == [stream.request_id]
    assert [e["reason"] for e in events(wedged, "lease lost")] == ["the event loop stands still"]
