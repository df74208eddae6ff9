"""A server that is killed forgets what it delivered last, and delivers it again as a first one."""

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack

import pytest

from dialback.outcomes import Delivery, Ending, Finished, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support.consumer_rig import ConsumerRig, consuming
from support.eventually import eventually
from support.queue_rig import lane_state, nothing_left, put

pytestmark = pytest.mark.integration

ADOPTED = "delivered again while it is being worked on"
ROUNDS = 20  # at most: whether the server has written a delivery down is a matter of milliseconds


async def test_a_delivery_that_the_server_forgot_is_made_again_and_runs_once(
    own_server: EmbeddedServer, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    rigs: list[ConsumerRig] = []
    stored, killed, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def dies_meanwhile(_: Delivery) -> Ending:
        await stored.wait()
        os.kill(own_server.pid, signal.SIGKILL)
        killed.set()
        await ended.wait()
        return Finished(outcome=Outcome.COMPLETED, request_id="r")

    def reconnected() -> None:
        rigs[0].consumer.puller.reset()

    async with AsyncExitStack() as stack:
        client = await QueueClient.open(
            ServerAddress(url=own_server.url),
            name="t",
            role="worker",
            events=ConnectionEvents(reconnected=reconnected),
        )
        stack.push_async_callback(client.close)
        rig = await stack.enter_async_context(
            consuming(own_server.url, client, endpoint, slots=2, ack_wait=30.0)
        )
        rigs.append(rig)
        rig.handle = dies_meanwhile

        async def known() -> bool:
            state = await lane_state(client, endpoint, Lane.NORMAL)
            return int(state["delivered"]["stream_seq"]) >= rig.deliveries[-1].sequence

        rounds = 0
        while ADOPTED not in caplog.messages:
            rounds += 1
            assert rounds <= ROUNDS
            for event in (stored, killed, ended):
                event.clear()
            await rig.until_waiting()
            sequence = (await put(client, endpoint, f"r{rounds}")).sequence
            stored.set()
            await killed.wait()
            await own_server.kill()  # waits for its end
            await own_server.start()
            await eventually(known)  # it knows this delivery, or has made it again
            assert rig.deliveries[-1].sequence == sequence
            ended.set()
            await nothing_left(client, endpoint)
            await rig.until_busy(0)
        assert [delivery.number for delivery in rig.deliveries] == [1] * rounds
        assert rig.counts() == {"completed": rounds, "settled": rounds}
    adopted = [vars(record) for record in caplog.records if record.getMessage() == ADOPTED]
    assert [record["delivery"] for record in adopted] == [1]
