import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator

import pytest

from dialback.outcomes import (
    Delivery,
    DeliveryEnd,
    Ending,
    Finished,
    HandedBack,
    Outcome,
    Revoked,
)
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.consumer import Drained
from dialback.queue.delivery import ACK
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support.consumer_rig import ConsumerRig, always, consuming
from support.eventually import eventually
from support.queue_rig import LIMIT, lane_state, nothing_left, provision, put, stored, take

pytestmark = pytest.mark.integration


@pytest.fixture
async def rig(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> AsyncGenerator[ConsumerRig]:
    async with consuming(nats_server.url, queue_client, endpoint) as rig:
        yield rig


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.ENGINE_FAILED, Outcome.EXPIRED])
async def test_an_ended_request_leaves_the_queue(rig: ConsumerRig, outcome: Outcome) -> None:
    rig.handle = always(outcome)
    for lane in Lane:
        await put(rig.client, rig.endpoint, f"r-{lane}", lane=lane, headers={"A": "1"})
    await rig.until_counted(**{outcome: 3, "settled": 3})
    await nothing_left(rig.client, rig.endpoint)
    assert await stored(rig.client, rig.endpoint.dead_stream) == 0
    assert {delivery.lane for delivery in rig.deliveries} == {"high", "normal", "low"}
    assert {delivery.headers["A"] for delivery in rig.deliveries} == {"1"}


async def test_an_invalid_request_becomes_a_dead_letter(rig: ConsumerRig) -> None:
    rig.handle = always(Outcome.INVALID)
    await put(rig.client, rig.endpoint, "r1", payload=b"garbage")
    await rig.until_counted(invalid=1, settled=1)
    await nothing_left(rig.client, rig.endpoint)
    letter = await rig.client.api.get_message(rig.endpoint.dead_stream)
    assert (letter.subject, letter.payload) == (rig.endpoint.dead_subject("r1"), b"garbage")
    assert letter.headers["Dialback-Outcome"] == "invalid"
    assert rig.sample("dialback_dead_letters_total", reason="invalid") == 1


async def test_a_handed_back_request_comes_again_at_once(rig: ConsumerRig) -> None:
    async def handle(delivery: Delivery) -> Ending:
        if delivery.number < 3:
            return HandedBack(request_id="r1", reason="not now")
        return Finished(outcome=Outcome.COMPLETED, request_id="r1")

    rig.handle = handle
    await put(rig.client, rig.endpoint, "r1")
    await rig.until_counted(completed=1, settled=1, handed_back=2)
    assert [delivery.number for delivery in rig.deliveries] == [1, 2, 3]
    await nothing_left(rig.client, rig.endpoint)


async def test_an_unreachable_requester_is_tried_max_attempts_times(rig: ConsumerRig) -> None:
    rig.handle = always(Outcome.REQUESTER_UNREACHABLE)
    await put(rig.client, rig.endpoint, "r1")
    await rig.until_counted(requester_unreachable=1, settled=1, retried=2)
    assert [delivery.number for delivery in rig.deliveries] == [1, 2, 3]
    await nothing_left(rig.client, rig.endpoint)
    letter = await rig.client.api.get_message(rig.endpoint.dead_stream)
    assert letter.headers["Dialback-Deliveries"] == "3"


async def test_a_letter_that_cannot_be_stored_keeps_the_message(
    rig: ConsumerRig,
) -> None:
    rig.handle = always(Outcome.INVALID)
    await rig.client.api.request(f"STREAM.DELETE.{rig.endpoint.dead_stream}")
    await put(rig.client, rig.endpoint, "r1")

    async def retried() -> float:
        return rig.counts().get(DeliveryEnd.RETRIED, 0)

    await eventually(retried, lambda count: count >= 2)
    assert await stored(rig.client, rig.endpoint.stream) == 1
    assert Outcome.INVALID not in rig.counts()
    await provision(rig.client, rig.endpoint, ack_wait=1.0)
    await nothing_left(rig.client, rig.endpoint)
    assert await stored(rig.client, rig.endpoint.dead_stream) == 1
    assert rig.counts()[Outcome.INVALID] == 1


async def test_a_request_is_kept_for_longer_than_its_lease(rig: ConsumerRig) -> None:
    finish = asyncio.Event()

    async def handle(delivery: Delivery) -> Ending:
        await finish.wait()
        return await always(Outcome.COMPLETED)(delivery)

    rig.handle = handle
    await put(rig.client, rig.endpoint, "r1")
    await rig.until_busy(1)
    await asyncio.sleep(2.5)  # the passing of time is what is tested
    finish.set()
    await rig.until_counted(completed=1, settled=1)
    assert [delivery.number for delivery in rig.deliveries] == [1]


async def test_after_a_lost_lease_the_message_is_another_worker_s(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    async with consuming(
        nats_server.url, queue_client, endpoint, slots=1, pulse=LIMIT, stuck_limit=0.2
    ) as rig:
        await put(queue_client, endpoint, "r1")
        await rig.until_counted(superseded=1)
        rig.consumer.puller.stop()
        assert rig.deliveries[0].revocation.reason is Revoked.LEASE_LOST
        assert await stored(queue_client, endpoint.stream) == 1
    message, info = await take(queue_client, endpoint)
    assert info.number > 1
    await queue_client.settler.confirm(message, ACK)
    await nothing_left(queue_client, endpoint)


async def test_a_message_that_lay_in_the_socket_while_the_loop_stood_still_is_left_alone(
    rig: ConsumerRig, nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def put_elsewhere() -> None:
        client = await QueueClient.open(ServerAddress(url=nats_server.url), name="t", role="tests")
        await put(client, rig.endpoint, "r1")
        await client.close()

    await rig.until_waiting()
    publisher = threading.Thread(target=lambda: asyncio.run(put_elsewhere()))
    publisher.start()
    publisher.join()
    time.sleep(2.0)  # noqa: ASYNC251 -- what an engine must not do, and does
    rig.handle = always(Outcome.COMPLETED)
    await rig.until_counted(superseded=1, completed=1, settled=1)
    assert [delivery.number for delivery in rig.deliveries] == [2]
    await nothing_left(rig.client, rig.endpoint)
    dropped = "message dropped: the event loop stood still, another worker may have it"
    assert caplog.messages.count(dropped) == 1


async def test_messages_that_are_pulled_right_after_a_standstill_are_taken(
    rig: ConsumerRig,
) -> None:
    rig.handle = always(Outcome.COMPLETED)
    await rig.until_waiting()
    time.sleep(2.0)  # noqa: ASYNC251 -- as above
    rig.consumer.puller.start_over()
    for number in range(5):
        await put(rig.client, rig.endpoint, f"r{number}")
    await rig.until_counted(completed=5, settled=5)


async def test_one_info_line_for_each_finished_request(
    rig: ConsumerRig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    rig.handle = always(Outcome.COMPLETED)
    for number in range(5):
        await put(rig.client, rig.endpoint, f"r{number}")
    await rig.until_counted(completed=5, settled=5)
    records = [r for r in caplog.records if r.getMessage() == "request finished"]
    assert sorted(vars(r)["request_id"] for r in records) == [f"r{n}" for n in range(5)]
    assert sorted(vars(r)["seq"] for r in records) == [1, 2, 3, 4, 5]
    for record in records:
        said = vars(record)
        assert record.levelname == "INFO"
        assert (said["lane"], said["delivery"], said["outcome"]) == ("normal", 1, "completed")


async def test_the_gauge_shows_the_busy_slots_and_no_slot_is_overbooked(rig: ConsumerRig) -> None:
    for number in range(6):
        await put(rig.client, rig.endpoint, f"r{number}")
    await rig.until_busy(2)
    assert rig.sample("dialback_slots", state="busy") == 2
    assert rig.sample("dialback_slots", state="free") == 0
    pending = await lane_state(rig.client, rig.endpoint)
    assert (pending["num_ack_pending"], pending["num_pending"]) == (2, 4)
    rig.consumer.puller.stop()
    rig.consumer.revoke_all()
    await rig.until_busy(0)
    assert rig.sample("dialback_slots", state="busy") == 0


async def test_a_drain_lets_what_runs_finish_and_leaves_the_rest_in_the_queue(
    rig: ConsumerRig,
) -> None:
    finish = asyncio.Event()

    async def handle(delivery: Delivery) -> Ending:
        await finish.wait()
        return await always(Outcome.COMPLETED)(delivery)

    rig.handle = handle
    for number in range(5):
        await put(rig.client, rig.endpoint, f"r{number}")
    await rig.until_busy(2)
    rig.consumer.puller.stop()
    asyncio.get_running_loop().call_soon(finish.set)
    drained = await rig.consumer.drain(LIMIT, reserve=1.0, hurry=asyncio.Event())
    assert drained == Drained(interrupted=0, abandoned=0)
    assert rig.counts() == {"completed": 2, "settled": 2}
    assert await stored(rig.client, rig.endpoint.stream) == 3
    state = await lane_state(rig.client, rig.endpoint)
    assert (state["num_ack_pending"], state["num_waiting"]) == (0, 0)


@pytest.mark.parametrize("hurried", [False, True])
async def test_a_drain_revokes_what_does_not_finish(rig: ConsumerRig, *, hurried: bool) -> None:
    await put(rig.client, rig.endpoint, "r1")
    await rig.until_busy(1)
    rig.consumer.puller.stop()
    hurry = asyncio.Event()
    if hurried:
        hurry.set()
    reserve = 1.0 if hurried else LIMIT - 0.01
    drained = await rig.consumer.drain(LIMIT, reserve=reserve, hurry=hurry)
    assert drained == Drained(interrupted=1, abandoned=0)
    await nothing_left(rig.client, rig.endpoint)


async def test_what_a_drain_abandons_comes_again_when_its_lease_ends(rig: ConsumerRig) -> None:
    async def deaf(_: Delivery) -> Ending:
        await asyncio.Event().wait()
        raise AssertionError("never")

    rig.handle = deaf
    await put(rig.client, rig.endpoint, "r1")
    await rig.until_busy(1)
    rig.consumer.puller.stop()
    drained = await rig.consumer.drain(0.02, reserve=0.01, hurry=asyncio.Event())
    assert drained == Drained(interrupted=0, abandoned=1)
    assert rig.counts() == {}
    _, info = await take(rig.client, rig.endpoint)
    assert info.number == 2
