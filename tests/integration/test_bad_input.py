"""Bad requests in a real queue: each becomes one dead letter, nothing is lost, the worker lives.

What their callers are told is in tests/unit/ingress/test_bad_input.py.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from dialback import Context, Settings, Worker, WorkerExit
from dialback.metrics.names import ErrorType
from dialback.outcomes import Outcome
from dialback.queue.api import StoredMessage
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support.bad_payloads import BAD_PAYLOADS, BadPayload
from support.black_hole import BlackHole, NobodyListens
from support.eventually import eventually
from support.frames import request_payload
from support.queue_rig import provision
from support.scripted_requester import CallHome, ScriptedRequester, items_of

pytestmark = pytest.mark.integration

ATTEMPTS = 2


async def echo(request: Any, context: Context) -> AsyncIterator[Any]:
    yield request


class Polite:
    """A requester that reads every answer to its end and closes."""

    def __init__(self, requester: ScriptedRequester) -> None:
        self._requester = requester
        self.address = requester.address
        self.answers: list[list[Any]] = []

    async def serve(self) -> None:
        """Answer connections until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                connection = await self._requester.connection()
                group.create_task(self._read(connection))

    async def _read(self, connection: CallHome) -> None:
        self.answers.append(await connection.frames())
        await connection.close()


@dataclass(frozen=True, slots=True)
class Queue:
    """A worker and its queue."""

    client: QueueClient
    endpoint: Endpoint
    registry: CollectorRegistry
    requester: Polite
    running: "asyncio.Task[WorkerExit]"

    async def publish(
        self, token: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        subject = self.endpoint.request_subject(Lane.NORMAL, token)
        await self.client.publisher.publish(subject, payload, headers or {})

    async def waiting(self) -> tuple[int, int]:
        """Messages in the queue, and deliveries that are not settled."""
        stream = self.endpoint.stream
        state = (await self.client.api.stream_info(stream))["state"]
        pending = 0
        for lane in Lane:
            info = await self.client.api.consumer_info(stream, lane.value)
            pending += info["num_ack_pending"]
        return state["messages"], pending

    async def letters(self) -> list[StoredMessage]:
        """All dead letters."""
        messages = self.client.api.messages(self.endpoint.dead_stream, limit=10_000)
        return [message async for message in messages]

    def counted(self, series: str, label: str) -> dict[str, int]:
        """A counter's values by one label, without zeros."""
        return {
            sample.labels[label]: int(sample.value)
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == series and sample.value
        }

    async def all_settled(self) -> None:
        """Wait until nothing is left in the queue."""
        await eventually(self.waiting, lambda found: found == (0, 0))


@pytest.fixture
async def queue(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> AsyncGenerator[Queue]:
    registry = CollectorRegistry()
    settings = Settings.load(
        server=nats_server.url,
        status_port=-1,
        dial_attempts=1,
        connect_timeout=0.2,
        dial_timeout=0.2,
        retry_delay=0.05,
        max_attempts=ATTEMPTS,
        shutdown_budget=5.0,
    )
    worker = Worker(echo, endpoint=str(endpoint), settings=settings, registry=registry)
    async with ScriptedRequester() as requester:
        polite = Polite(requester)
        serving = asyncio.create_task(polite.serve(), name="polite requester")
        await provision(queue_client, endpoint)
        running = asyncio.create_task(worker.run(signals=False), name="worker")
        yield Queue(queue_client, endpoint, registry, polite, running)
        worker.stop()
        assert await running is WorkerExit.CLEAN
        serving.cancel()
        await asyncio.wait((serving,))


async def assert_good_request_completes(queue: Queue) -> None:
    before = len(queue.requester.answers)
    await queue.publish("good", request_payload(queue.requester.address, "good"))
    await queue.all_settled()
    (answer,) = queue.requester.answers[before:]
    assert items_of(answer) == [
        {"data": {"data": "good"}, "complete_final": False},
        {"complete_final": True},
    ]
    assert not queue.running.done()


@pytest.mark.parametrize("bad", BAD_PAYLOADS, ids=lambda bad: str(bad.name))
async def test_bad_request_becomes_one_dead_letter(bad: BadPayload, queue: Queue) -> None:
    payload = bad.build(queue.requester.address)
    await queue.publish("bad", payload, {"request-id": "named", "x-tenant": "a"})
    await queue.all_settled()
    (letter,) = await queue.letters()
    assert letter.payload == payload
    assert letter.headers["Dialback-Outcome"] == bad.outcome
    assert bad.reason in letter.headers["Dialback-Reason"]
    assert letter.headers["Dialback-Request-Id"] in {"req-1", "named"}
    assert letter.headers["x-tenant"] == "a"
    assert letter.headers["Dialback-Deliveries"] == "1"
    assert len(queue.requester.answers) == bad.told
    await assert_good_request_completes(queue)
    assert len(await queue.letters()) == 1
    assert queue.counted("dialback_outcomes_total", "outcome") == {
        bad.outcome.value: 1,
        "completed": 1,
    }
    assert queue.counted("dialback_dead_letters_total", "reason") == {bad.outcome.value: 1}


async def test_counts_of_all_bad_requests_together_add_up(queue: Queue) -> None:
    expected: dict[bytes, str] = {}
    async with AsyncExitStack() as stack:
        nobody, hole = stack.enter_context(NobodyListens()), stack.enter_context(BlackHole())
        for number, bad in enumerate(BAD_PAYLOADS):
            payload = _renamed(bad.build(queue.requester.address), number)
            expected[payload] = bad.outcome
            await queue.publish(f"bad-{number}", payload)
        for address, outcome in (
            (nobody.address, Outcome.REQUESTER_GONE),
            (hole.address, Outcome.REQUESTER_UNREACHABLE),
        ):
            payload = request_payload(address, 1)
            expected[payload] = outcome
            await queue.publish(outcome.replace("_", "-"), payload)
        assert len(expected) == len(BAD_PAYLOADS) + 2
        await eventually(queue.letters, lambda letters: len(letters) == len(expected))
        await queue.all_settled()
    letters = await queue.letters()
    assert {letter.payload: letter.headers["Dialback-Outcome"] for letter in letters} == expected
    assert len({letter.headers["Dialback-Origin"] for letter in letters}) == len(expected)
    await assert_good_request_completes(queue)
    _assert_counts(queue, expected)


def _renamed(payload: bytes, number: int) -> bytes:
    """Give a payload an id of its own, of the same length."""
    return payload.replace(b"req-1", f"r{number:04}".encode())


def _assert_counts(queue: Queue, expected: Mapping[bytes, str]) -> None:
    dead = Counter(expected.values())
    retries = ATTEMPTS - 1  # of the request whose requester never answers
    assert queue.counted("dialback_dead_letters_total", "reason") == dead
    assert queue.counted("dialback_outcomes_total", "outcome") == dead | {"completed": 1}
    assert queue.counted("dialback_deliveries_total", "end") == {
        "settled": len(expected) + 1,
        "retried": retries,
    }
    errors = Counter(bad.error_type.value for bad in BAD_PAYLOADS)
    errors[ErrorType.RESPONSE_STREAM.value] += 1 + ATTEMPTS
    assert queue.counted("dynamo_component_errors_total", "error_type") == errors
    requests = queue.counted("dynamo_component_requests_total", "dynamo_endpoint")
    assert requests == {queue.endpoint.endpoint: len(expected) + 1 + retries}
    assert queue.counted("dynamo_component_inflight_requests", "dynamo_endpoint") == {}
    told = sum(bad.told for bad in BAD_PAYLOADS)
    assert len(queue.requester.answers) == told + 1


async def test_bad_requests_of_one_id_are_all_kept(queue: Queue) -> None:
    payloads = [request_payload(queue.requester.address, body=b"{%d" % n) for n in range(4)]
    for number, payload in enumerate(payloads):
        await queue.publish(f"same-{number}", payload)
        await queue.all_settled()
    letters = await queue.letters()
    assert [letter.payload for letter in letters] == payloads
    assert {letter.headers["Dialback-Request-Id"] for letter in letters} == {"req-1"}
