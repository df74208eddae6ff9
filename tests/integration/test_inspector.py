"""What the inspector sees of real queues, and that looking changes nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson
import pytest
from typing_extensions import override

from dialback import Requester, Settings, Worker
from dialback.errors import (
    ConfigError,
    NotFoundError,
    QueueError,
    ServerUnavailableError,
    StreamMissingError,
)
from dialback.queue.api import JetStreamApi
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.inspection import LaneState, RequeueStatus
from dialback.queue.inspector import Inspector
from dialback.queue.letter_search import AmbiguousIdError
from dialback.queue.publisher import PubAck, Publisher
from dialback.queue.topology import Endpoint, Lane, QueueSettings, requests_stream
from support.eventually import eventually
from support.letters import CALLER, bury, consumers, depth, provision, publish, request_of

pytestmark = pytest.mark.integration
_NS = 1_000_000_000


async def _lane(client: QueueClient, endpoint: Endpoint, lane: Lane) -> LaneState:
    rows = await Inspector(client).queues()
    return next(r.state for r in rows if r.endpoint == endpoint and r.state.lane is lane)


async def _take(client: QueueClient, endpoint: Endpoint, lane: Lane) -> None:
    """Take one message as a worker would, and keep it."""
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{endpoint.stream}.{lane}"
    # The delivery comes with its own subject, which the new style of request cannot match.
    pull = orjson.dumps({"batch": 1, "expires": 30 * _NS})
    await client.connection.request(subject, pull, timeout=30, old_style=True)


# --- queues -----------------------------------------------------------------------------


async def test_a_queue_has_one_row_for_each_lane(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    rows = [r for r in await Inspector(queue_client).queues() if r.endpoint == endpoint]
    assert [(r.state.lane, r.state.queued, r.state.in_flight) for r in rows] == [
        (Lane.HIGH, 0, 0),
        (Lane.NORMAL, 0, 0),
        (Lane.LOW, 0, 0),
    ]
    assert all(r.state.oldest is r.state.oldest_queued is None for r in rows)


async def test_queued_and_in_flight_are_counted_apart(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for name in ("r-1", "r-2", "r-3"):
        await publish(queue_client, endpoint, name, lane=Lane.LOW)
    await bury(queue_client, endpoint, "dead")
    await _take(queue_client, endpoint, Lane.LOW)
    rows = [r for r in await Inspector(queue_client).queues() if r.endpoint == endpoint]
    low = rows[2].state
    assert (low.queued, low.in_flight, low.redelivered, low.waiting) == (2, 1, 0, 0)
    assert low.oldest is not None
    assert low.oldest_queued is not None
    assert low.oldest >= low.oldest_queued >= 0
    assert [r.dead_letters for r in rows] == [1, 1, 1]


async def test_waiting_pulls_are_counted(queue_client: QueueClient, endpoint: Endpoint) -> None:
    await provision(queue_client, endpoint)
    pull = asyncio.create_task(_take(queue_client, endpoint, Lane.HIGH))
    await eventually(
        lambda: _lane(queue_client, endpoint, Lane.HIGH), lambda state: state.waiting == 1
    )
    await publish(queue_client, endpoint, "r-1", lane=Lane.HIGH)
    await pull


async def test_streams_of_others_are_ignored(queue_client: QueueClient, endpoint: Endpoint) -> None:
    name = f"JOBS_OF_{endpoint.endpoint.upper()}"
    await queue_client.api.create_stream({"name": name, "subjects": [f"other.{name}"]})
    rows = await Inspector(queue_client).queues()
    assert endpoint.endpoint.upper() not in {str(row.endpoint) for row in rows}
    assert all(row.endpoint.endpoint == row.endpoint.endpoint.lower() for row in rows)


async def test_a_lane_without_consumer_says_so(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await queue_client.api.create_stream(requests_stream(endpoint, QueueSettings()))
    await publish(queue_client, endpoint, "r-1")
    state = await _lane(queue_client, endpoint, Lane.NORMAL)
    assert (state.has_consumer, state.queued, state.in_flight) == (False, None, None)
    assert state.oldest is not None
    info = await Inspector(queue_client).queue(endpoint)
    assert info.advice[0].startswith("nobody can take requests of lane high, normal, low")
    assert info.advice[1].startswith("there is no stream of dead letters")
    (message,) = await Inspector(queue_client).peek(endpoint, 5)
    assert message.delivered is None


async def test_a_queue_that_vanishes_while_looking_is_left_out(
    queue_client: QueueClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Endpoint("test", "backend", "vanished")

    async def names(_: JetStreamApi) -> list[str]:
        return [endpoint.stream, gone.stream]

    await provision(queue_client, endpoint)
    monkeypatch.setattr(JetStreamApi, "stream_names", names)
    rows = await Inspector(queue_client).queues()
    assert {row.endpoint for row in rows} == {endpoint}


async def test_a_paused_lane_says_so(queue_client: QueueClient, endpoint: Endpoint) -> None:
    await provision(queue_client, endpoint)
    until = {"pause_until": "2099-01-01T00:00:00Z"}
    await queue_client.api.request(f"CONSUMER.PAUSE.{endpoint.stream}.low", until)
    assert (await _lane(queue_client, endpoint, Lane.LOW)).paused
    assert "lane low is paused" in (await Inspector(queue_client).queue(endpoint)).advice


async def test_info_shows_settings_state_and_drift(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    ack = await publish(queue_client, endpoint, "r-1")
    info = await Inspector(queue_client).queue(endpoint, QueueSettings(ack_wait=60))
    assert (info.stream, info.messages, info.last_sequence) == (endpoint.stream, 1, ack.sequence)
    assert info.size > 100
    assert info.max_payload == 1024 * 1024
    assert info.server_version.startswith("2.")
    assert info.settings["duplicate_window_seconds"] == 600.0
    assert info.drift == tuple(
        f"consumer {lane}: ack_wait is 30 s, wanted 60 s" for lane in ("high", "normal", "low")
    )
    assert info.advice[0].startswith("1 queued in lane normal and no worker asks")


@pytest.mark.parametrize("call", ["queue", "peek", "dead_letters", "dead_letter", "count"])
async def test_an_endpoint_that_has_no_queue_is_not_found(
    call: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    inspector = Inspector(queue_client)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "queue": lambda: inspector.queue(endpoint),
        "peek": lambda: inspector.peek(endpoint, 1),
        "dead_letters": lambda: inspector.dead_letters(endpoint, 1),
        "dead_letter": lambda: inspector.dead_letter(endpoint, "x"),
        "count": lambda: inspector.dead_letter_count(endpoint),
    }
    with pytest.raises(StreamMissingError, match=f"no queue for endpoint {endpoint}"):
        await calls[call]()


async def test_reading_creates_no_consumer_and_takes_nothing(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await publish(queue_client, endpoint, "r-1")
    await bury(queue_client, endpoint, "dead-1")
    before = await consumers(queue_client, endpoint)
    inspector = Inspector(queue_client)
    await inspector.queues()
    await inspector.queue(endpoint)
    await inspector.peek(endpoint, 10)
    await inspector.dead_letters(endpoint, 10)
    await inspector.dead_letter(endpoint, "dead")
    assert await consumers(queue_client, endpoint) == before == [3, 0]
    assert await depth(queue_client, endpoint.stream) == 1
    assert await depth(queue_client, endpoint.dead_stream) == 1
    state = await _lane(queue_client, endpoint, Lane.NORMAL)
    assert (state.queued, state.in_flight) == (1, 0)


# --- peek -------------------------------------------------------------------------------


async def test_peek_shows_the_oldest_first_and_one_lane_if_asked(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for name, lane in (("a", Lane.LOW), ("b", Lane.HIGH), ("c", Lane.LOW), ("d", Lane.LOW)):
        await publish(queue_client, endpoint, name, lane=lane)
    inspector = Inspector(queue_client)
    found = await inspector.peek(endpoint, 3)
    assert [message.request_id for message in found] == ["a", "b", "c"]
    low = await inspector.peek(endpoint, 10, Lane.LOW)
    assert [(message.request_id, message.lane) for message in low] == [
        ("a", "low"),
        ("c", "low"),
        ("d", "low"),
    ]


async def test_peek_says_who_asked_and_what_is_in_flight(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    deadline = {"Dialback-Deadline": str(time.time_ns() + 600 * _NS)}
    await publish(queue_client, endpoint, "first", headers=deadline)
    await publish(queue_client, endpoint, "second")
    await _take(queue_client, endpoint, Lane.NORMAL)
    first, second = await Inspector(queue_client).peek(endpoint, 10)
    assert (first.caller, first.codec) == (CALLER, "json")
    assert (first.delivered, second.delivered) == (True, False)
    assert first.deadline_left is not None
    assert 0 < first.deadline_left <= 600
    assert second.deadline_left is None
    assert first.payload == request_of("first")


async def test_an_empty_queue_has_nothing_to_show(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    assert await Inspector(queue_client).peek(endpoint, 10) == []
    assert await Inspector(queue_client).dead_letters(endpoint, 10) == []


# --- dead letters -----------------------------------------------------------------------


async def test_a_letter_is_found_by_id_prefix_and_sequence(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for number, name in enumerate(("9f2c71e0", "b1d0aa42"), 1):
        await bury(queue_client, endpoint, name, sequence=number)
    inspector = Inspector(queue_client)
    for given in ("9f2c71e0", "9f", "9", "seq:1"):
        assert (await inspector.dead_letter(endpoint, given)).request_id == "9f2c71e0"


async def test_a_whole_id_wins_over_longer_ones(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for number, name in enumerate(("req-1", "req-10", "req-11"), 1):
        await bury(queue_client, endpoint, name, sequence=number)
    assert (await Inspector(queue_client).dead_letter(endpoint, "req-1")).request_id == "req-1"


async def test_an_ambiguous_prefix_lists_the_candidates(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for number, name in enumerate(("req-10", "req-11", "other"), 1):
        await bury(queue_client, endpoint, name, sequence=number)
    with pytest.raises(AmbiguousIdError) as caught:
        await Inspector(queue_client).dead_letter(endpoint, "req")
    assert caught.value.candidates == ("req-10", "req-11")


async def test_two_letters_of_one_id_are_told_apart_by_sequence(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    for number in (1, 2):
        await bury(queue_client, endpoint, "twice", sequence=number)
    with pytest.raises(AmbiguousIdError) as caught:
        await Inspector(queue_client).dead_letter(endpoint, "twice")
    assert caught.value.candidates == ("seq:1", "seq:2")


async def test_an_id_that_is_no_subject_token_is_found_too(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "team a/42", sequence=1)
    await bury(queue_client, endpoint, "other.1", sequence=2)
    inspector = Inspector(queue_client)
    assert (await inspector.dead_letter(endpoint, "team a/42")).request_id == "team a/42"
    assert (await inspector.dead_letter(endpoint, "team")).request_id == "team a/42"


@pytest.mark.parametrize("given", ["nothing", "seq:99"])
async def test_a_letter_that_is_not_there_is_not_found(
    given: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1")
    with pytest.raises(NotFoundError, match=f"no dead letter of {endpoint} is '{given}'"):
        await Inspector(queue_client).dead_letter(endpoint, given)


@pytest.mark.parametrize(
    "given", ["", "seq:", "seq:x", "seq:-1", "seq:0", "seq:99999999999999999999"]
)
async def test_what_cannot_be_an_id_is_wrong_usage(
    given: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    with pytest.raises(ConfigError):
        await Inspector(queue_client).dead_letter(endpoint, given)


async def test_a_queue_without_a_stream_of_letters_has_no_letters(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await queue_client.api.create_stream(requests_stream(endpoint, QueueSettings()))
    inspector = Inspector(queue_client)
    assert await inspector.dead_letter_count(endpoint) == 0
    assert await inspector.dead_letters(endpoint, 10) == []
    with pytest.raises(NotFoundError, match="no dead letter"):
        await inspector.dead_letter(endpoint, "x")


async def test_letters_outlive_their_queue(queue_client: QueueClient, endpoint: Endpoint) -> None:
    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1")
    await queue_client.api.request(f"STREAM.DELETE.{endpoint.stream}")
    inspector = Inspector(queue_client)
    assert endpoint in await inspector.dead_endpoints()
    assert endpoint not in {row.endpoint for row in await inspector.queues()}
    assert len(await inspector.dead_letters(endpoint, 10)) == 1
    result = await inspector.requeue(endpoint, 1)
    assert result.status is RequeueStatus.FAILED
    assert "no stream takes subject" in result.reason
    assert await depth(queue_client, endpoint.dead_stream) == 1


# --- requeue ----------------------------------------------------------------------------


async def test_a_requeued_letter_is_gone_and_its_request_is_queued_without_deadlines(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    subject = endpoint.request_subject(Lane.LOW, "token")
    headers = {"Dialback-Deadline": "1", "Dialback-Start-By": "1", "traceparent": "00-1-2-03"}
    await bury(queue_client, endpoint, "req-1", headers=headers, subject=subject)
    result = await Inspector(queue_client).requeue(endpoint, 1)
    assert (result.status, result.queued_sequence) == (RequeueStatus.REQUEUED, 1)
    assert await depth(queue_client, endpoint.dead_stream) == 0
    stored = await queue_client.api.get_exact(endpoint.stream, 1)
    assert (stored.subject, stored.payload) == (
        subject,
        request_of("req-1"),
    )
    assert stored.headers["traceparent"] == "00-1-2-03"
    assert stored.headers["Nats-Msg-Id"] == f"{endpoint.dead_stream}:1:1"
    assert {name for name in stored.headers if name.startswith("Dialback-")} == {"Dialback-History"}
    history = orjson.loads(stored.headers["Dialback-History"])
    assert [entry["outcome"] for entry in history] == ["requester_gone"]


async def test_a_letter_is_deleted_only_after_a_fresh_acknowledgement(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1")
    for number in (1, 2):
        # The queue knows these ids: a publish with them stores nothing.
        known = {"Nats-Msg-Id": f"{endpoint.dead_stream}:1:{number}"}
        await publish(queue_client, endpoint, f"other-{number}", headers=known)
    result = await Inspector(queue_client).requeue(endpoint, 1)
    assert (result.status, result.queued_sequence) == (RequeueStatus.REQUEUED, 3)
    stored = await queue_client.api.get_exact(endpoint.stream, 3)
    assert stored.headers["Nats-Msg-Id"] == f"{endpoint.dead_stream}:1:3"


async def test_a_letter_that_the_queue_never_takes_stays(
    queue_client: QueueClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def publish_nothing(
        self: Publisher, subject: str, payload: bytes, headers: Mapping[str, str], *, retry: bool
    ) -> PubAck:
        del self, subject, payload, headers, retry
        return PubAck(stream=endpoint.stream, sequence=1, duplicate=True)

    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1")
    monkeypatch.setattr(Publisher, "publish", publish_nothing)
    result = await Inspector(queue_client).requeue(endpoint, 1)
    assert result.status is RequeueStatus.FAILED
    assert await depth(queue_client, endpoint.dead_stream) == 1


async def test_a_letter_that_is_gone_is_not_queued_twice(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1")
    inspector = Inspector(queue_client)
    results = [await inspector.requeue(endpoint, 1), await inspector.requeue(endpoint, 1)]
    assert [r.status for r in results] == [RequeueStatus.REQUEUED, RequeueStatus.GONE]
    assert await depth(queue_client, endpoint.stream) == 1


async def test_a_publish_whose_fate_is_unknown_keeps_the_letter(
    queue_client: QueueClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unheard(
        self: Publisher, subject: str, payload: bytes, headers: Mapping[str, str], *, retry: bool
    ) -> PubAck:
        del self, subject, payload, headers, retry
        raise ServerUnavailableError("not acknowledged")

    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1")
    monkeypatch.setattr(Publisher, "publish", unheard)
    with pytest.raises(ServerUnavailableError):
        await Inspector(queue_client).requeue(endpoint, 1)
    assert await depth(queue_client, endpoint.dead_stream) == 1


@pytest.mark.parametrize("subject", ["somebody.elses", "dialback.a.b.c.jobs.normal.x"])
async def test_a_letter_is_never_published_outside_its_endpoint(
    subject: str, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1", subject=subject)
    result = await Inspector(queue_client).requeue(endpoint, 1)
    assert result.status is RequeueStatus.FAILED
    assert f"'{subject}' is no subject of {endpoint}" in result.reason
    assert await depth(queue_client, endpoint.dead_stream) == 1


class _NoDelete(JetStreamApi):
    """A server that lets nobody delete, or where another operator was faster."""

    error: QueueError

    @override
    async def delete_message(self, stream: str, sequence: int) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (QueueError("no"), RequeueStatus.LEFT, "could not be deleted: no"),
        (NotFoundError("no"), RequeueStatus.REQUEUED, "deleted by somebody else"),
    ],
)
async def test_a_letter_that_cannot_be_deleted_is_reported(
    *,
    error: QueueError,
    status: RequeueStatus,
    words: str,
    queue_client: QueueClient,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await provision(queue_client, endpoint)
    await bury(queue_client, endpoint, "req-1")
    monkeypatch.setattr(_NoDelete, "error", error, raising=False)
    monkeypatch.setattr("dialback.queue.inspector.JetStreamApi", _NoDelete)
    result = await Inspector(queue_client).requeue(endpoint, 1)
    assert (result.status, result.queued_sequence) == (status, 1)
    assert words in result.reason


async def test_a_requeue_without_a_server_raises_and_loses_nothing(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="operator")
    await provision(client, endpoint)
    await bury(client, endpoint, "req-1")
    stored = await client.api.get_exact(endpoint.dead_stream, 1)
    await own_server.kill()
    inspector = Inspector(client, timeout=0.2)
    with pytest.raises(ServerUnavailableError):
        await inspector.requeue(endpoint, 1)
    await own_server.start()
    await eventually(lambda: _is_back(client))
    assert (await client.api.get_exact(endpoint.dead_stream, 1)).payload == stored.payload
    await client.close()


async def _is_back(client: QueueClient) -> bool:
    try:
        await client.api.request("INFO")
    except ServerUnavailableError:
        return False
    return True


# --- with a real worker -----------------------------------------------------------------


async def echo(request: Any, context: Any) -> AsyncIterator[Any]:
    del context
    yield request


async def test_a_workers_dead_letter_is_found_requeued_and_served(
    nats_server: EmbeddedServer, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    settings = Settings.load(server=nats_server.url, status_port=-1)
    worker = Worker(echo, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    inspector = Inspector(queue_client)
    await eventually(lambda: _exists(queue_client, endpoint))
    # Nobody listens at this address: the worker gives the request up.
    await publish(queue_client, endpoint, "req-1")
    await eventually(lambda: inspector.dead_letters(endpoint, 10))
    (letter,) = await inspector.dead_letters(endpoint, 10)
    assert (letter.request_id, letter.outcome) == ("req-1", "requester_gone")
    # The caller is still gone: requeued, it becomes a letter again, with a history.
    assert (await inspector.requeue(endpoint, letter.sequence)).status is RequeueStatus.REQUEUED
    found = await eventually(lambda: inspector.dead_letters(endpoint, 10))
    assert [entry["outcome"] for entry in found[0].history] == ["requester_gone"]
    assert await depth(queue_client, endpoint.stream) == 0
    async with (
        Requester(settings) as requester,
        requester.generate(str(endpoint), "still served") as stream,
    ):
        assert [item async for item in stream] == ["still served"]
    worker.stop()
    await running


async def _exists(client: QueueClient, endpoint: Endpoint) -> bool:
    try:
        await Inspector(client).dead_letters(endpoint, 1)
        await client.api.consumer_info(endpoint.stream, "low")
    except QueueError:
        return False
    return True
