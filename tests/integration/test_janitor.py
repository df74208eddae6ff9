"""Requests that nobody serves: their callers hear of it, and nobody else's are touched."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from dialback.errors import ServerUnavailableError
from dialback.queue.client import QueueClient
from dialback.queue.topology import Endpoint, Lane
from dialback.tasks import cancel_and_wait
from support.janitor_rig import DEADLINE, HOUR, PASSED, JanitorRig, by, heard, request
from support.letters import CALLER, request_of
from support.queue_rig import lane_state, nothing_left, provision, put, stored, take
from support.scripted_requester import ScriptedRequester

pytestmark = pytest.mark.integration


@pytest.fixture
async def requester() -> AsyncGenerator[ScriptedRequester]:
    async with ScriptedRequester() as one:
        yield one


@pytest.fixture
async def queue(queue_client: QueueClient, endpoint: Endpoint) -> Endpoint:
    await provision(queue_client, endpoint)
    return endpoint


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("name", ["Dialback-Start-By", DEADLINE])
async def test_the_caller_of_an_overdue_request_is_told_and_the_request_deleted(
    lane: Lane, name: str, queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    headers = by(PASSED, name=name)
    await put(queue_client, queue, "req-1", lane=lane, payload=request(requester), headers=headers)
    rig = JanitorRig(queue_client, queue)
    sweeping = asyncio.create_task(rig.janitor.sweep())
    error = await heard(requester)
    swept = await sweeping
    assert error["error_type"] == {"Backend": "ResponseTimeout"}
    assert error["message"] == "the request's deadline passed while it was queued"
    assert (swept.ended, swept.answered) == (1, 1)
    assert rig.outcomes() == {"expired": 1}
    await nothing_left(queue_client, queue)


async def test_a_request_whose_time_has_not_come_is_not_touched(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    for number, headers in enumerate([by(HOUR), by(HOUR, name=DEADLINE), {}]):
        await put(queue_client, queue, f"r{number}", payload=request(requester), headers=headers)
    rig = JanitorRig(queue_client, queue)
    assert (await rig.janitor.sweep()).ended == 0
    assert await stored(queue_client, queue.stream) == 3
    assert not requester.dialled


async def test_a_request_that_was_seen_before_its_time_is_answered_when_it_comes(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    headers = by(500_000_000)
    await put(queue_client, queue, "req-1", payload=request(requester), headers=headers)
    rig = JanitorRig(queue_client, queue, interval=0.05)
    running = asyncio.create_task(rig.janitor.run())
    assert (await heard(requester))["class"] == "DeadlineExceeded"
    await nothing_left(queue_client, queue)
    await cancel_and_wait(running)
    assert rig.outcomes() == {"expired": 1}


async def test_a_request_that_a_worker_has_is_not_touched_however_old(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    for token in ("r1", "r2"):
        await put(
            queue_client,
            queue,
            token,
            payload=request(requester),
            headers=by(PASSED, name=DEADLINE),
        )
        await take(queue_client, queue)
    rig = JanitorRig(queue_client, queue, unserved_limit=0.001)
    assert (await rig.janitor.sweep()).ended == 0
    assert (await lane_state(queue_client, queue))["num_ack_pending"] == 2
    assert not requester.dialled


async def test_a_request_that_waits_for_a_retry_is_its_workers(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    await put(queue_client, queue, "r1", payload=request(requester), headers=by(PASSED))
    message, _ = await take(queue_client, queue)
    await queue_client.settler.confirm(message, b'-NAK {"delay": 3600000000000}')
    assert (await JanitorRig(queue_client, queue).janitor.sweep()).ended == 0
    assert await stored(queue_client, queue.stream) == 1


async def test_a_request_without_deadline_is_answered_after_the_unserved_limit(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    await put(queue_client, queue, "dynamo", payload=request(requester))
    rig = JanitorRig(queue_client, queue, unserved_limit=0.001)
    sweeping = asyncio.create_task(rig.janitor.sweep())
    error = await heard(requester)
    await sweeping
    assert error["error_type"] == {"Backend": "ResponseTimeout"}
    assert error["message"] == "no worker took the request within 0.001 s"
    assert rig.outcomes() == {"expired": 1}
    await nothing_left(queue_client, queue)


async def test_of_several_janitors_one_dials(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    await put(queue_client, queue, "r1", payload=request(requester), headers=by(PASSED))
    rigs = [JanitorRig(queue_client, queue, name=f"j-{number}") for number in range(5)]
    sweeping = asyncio.gather(*(rig.janitor.sweep() for rig in rigs))
    await heard(requester)
    swept = await sweeping
    assert sorted(one.claimed for one in swept) == [False] * 4 + [True]
    assert sum(one.ended for one in swept) == 1
    assert not requester.dialled


async def test_a_janitor_that_ends_leaves_the_queue_to_another_at_once(
    queue_client: QueueClient, queue: Endpoint
) -> None:
    first, second = (JanitorRig(queue_client, queue, name=n).janitor for n in ("j-1", "j-2"))
    assert (await first.sweep()).claimed
    assert not (await second.sweep()).claimed
    await first.release()
    assert (await second.sweep()).claimed
    assert not (await first.sweep()).claimed


async def test_a_caller_that_is_gone_does_not_keep_its_request_in_the_queue(
    queue_client: QueueClient, queue: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await put(queue_client, queue, "r1", payload=request_of("r1"), headers=by(PASSED))
    rig = JanitorRig(queue_client, queue)
    swept = await rig.janitor.sweep()
    assert (swept.ended, swept.answered) == (1, 0)
    assert rig.outcomes() == {"expired": 1}
    assert await stored(queue_client, queue.stream) == 0
    (line,) = [vars(r) for r in caplog.records if r.message == "request finished"]
    assert (line["request_id"], line["outcome"], line["caller"]) == ("r1", "expired", CALLER)
    assert (line["caller_told"], line["dead_letter"]) == (False, False)


async def test_a_spent_subject_ends_the_answer_quietly(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    await put(queue_client, queue, "r1", payload=request(requester), headers=by(PASSED))
    rig = JanitorRig(queue_client, queue)
    sweeping = asyncio.create_task(rig.janitor.sweep())
    (await requester.connection()).reset()
    swept = await sweeping
    assert (swept.ended, swept.answered) == (1, 0)


async def test_a_request_that_a_worker_takes_meanwhile_is_left_to_it(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    await put(queue_client, queue, "r1", payload=request(requester), headers=by(PASSED))
    rig = JanitorRig(queue_client, queue)
    sweeping = asyncio.create_task(rig.janitor.sweep())
    connection = await requester.connection()
    await take(queue_client, queue)
    await connection.frames()
    await connection.close()
    assert (await sweeping).ended == 0
    assert rig.outcomes() == {}
    assert await stored(queue_client, queue.stream) == 1


class UnansweredDeletes:
    """A server of which the first answer to a request's deletion is lost.

    Attributes:
        asked: How often a request's deletion was asked for.
    """

    def __init__(
        self,
        client: QueueClient,
        queue: Endpoint,
        *,
        carried_out: bool,
        meanwhile: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.asked = 0
        self._delete = client.api.delete_message
        self._stream = queue.stream
        self._carried_out = carried_out
        self._meanwhile = meanwhile

    async def __call__(self, stream: str, sequence: int) -> None:
        self.asked += stream == self._stream
        if stream != self._stream or self.asked > 1:
            await self._delete(stream, sequence)
            return
        if self._carried_out:
            await self._delete(stream, sequence)
        if self._meanwhile is not None:
            await self._meanwhile()
        raise ServerUnavailableError("the leader died before it answered")


@pytest.mark.parametrize("carried_out", [True, False])
async def test_an_outcome_is_not_lost_with_the_answer_to_the_deletion(
    carried_out: bool,
    queue_client: QueueClient,
    queue: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    deletes = UnansweredDeletes(queue_client, queue, carried_out=carried_out)
    monkeypatch.setattr(queue_client.api, "delete_message", deletes)
    await put(queue_client, queue, "r1", payload=request_of("r1"), headers=by(PASSED))
    rig = JanitorRig(queue_client, queue)
    assert (await rig.janitor.sweep()).ended == 1
    assert deletes.asked == (1 if carried_out else 2)
    assert rig.outcomes() == {"expired": 1}
    assert [r.message for r in caplog.records].count("request finished") == 1
    assert (await rig.janitor.sweep()).ended == 0
    await nothing_left(queue_client, queue)


async def test_a_request_that_a_worker_takes_after_an_unanswered_deletion_is_left_to_it(
    queue_client: QueueClient, queue: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletes = UnansweredDeletes(
        queue_client, queue, carried_out=False, meanwhile=lambda: take(queue_client, queue)
    )
    monkeypatch.setattr(queue_client.api, "delete_message", deletes)
    await put(queue_client, queue, "r1", payload=request_of("r1"), headers=by(PASSED))
    rig = JanitorRig(queue_client, queue)
    assert (await rig.janitor.sweep()).ended == 0
    assert deletes.asked == 1
    assert rig.outcomes() == {}
    assert await stored(queue_client, queue.stream) == 1


async def test_an_unreadable_request_becomes_a_dead_letter(
    queue_client: QueueClient, queue: Endpoint
) -> None:
    await put(queue_client, queue, "r1", payload=b"garbage", headers=by(PASSED))
    rig = JanitorRig(queue_client, queue)
    assert (await rig.janitor.sweep()).ended == 1
    assert rig.outcomes() == {"invalid": 1}
    assert await stored(queue_client, queue.stream) == 0
    (letter,) = [m async for m in queue_client.api.messages(queue.dead_stream, limit=2)]
    assert letter.headers["Dialback-Outcome"] == "invalid"
    assert letter.payload == b"garbage"


async def test_a_long_queue_is_looked_at_in_parts_and_each_request_once(
    queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    ahead: dict[str, Any] = {"payload": request(requester), "headers": by(HOUR)}
    await asyncio.gather(*(put(queue_client, queue, f"r{n}", **ahead) for n in range(600)))
    await put(queue_client, queue, "late", payload=request_of("late"), headers=by(PASSED))
    rig = JanitorRig(queue_client, queue)
    assert (await rig.janitor.sweep()).ended == 1
    assert (await rig.janitor.sweep()).ended == 0
    await put(queue_client, queue, "later", payload=request_of("later"), headers=by(PASSED))
    assert (await rig.janitor.sweep()).ended == 1
    assert await stored(queue_client, queue.stream) == 600


async def test_a_lane_without_consumer_is_looked_after_too(
    queue_client: QueueClient, queue: Endpoint
) -> None:
    await put(queue_client, queue, "r1", payload=request_of("r1"), headers=by(PASSED))
    await queue_client.api.request(f"CONSUMER.DELETE.{queue.stream}.normal")
    assert (await JanitorRig(queue_client, queue).janitor.sweep()).ended == 1
    assert await stored(queue_client, queue.stream) == 0
