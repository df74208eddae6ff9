"""``dialback queue cancel``: queued, waiting and running requests, and their callers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dialback import Context, Requester, ResponseError, Settings, Worker
from dialback.queue.cancel_search import CancelSearch
from dialback.queue.cancellation import CancelOrder, ask_workers
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from support.cli import Ran, dialback_beside
from support.eventually import eventually
from support.janitor_rig import heard, request
from support.letters import request_of
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


class Cli:
    """``dialback queue cancel`` for one endpoint."""

    def __init__(self, url: str, endpoint: Endpoint) -> None:
        self._url, self._endpoint = url, str(endpoint)

    async def __call__(self, *arguments: str) -> Ran:
        return await dialback_beside(
            "queue", "cancel", self._endpoint, *arguments, "--json", "-s", self._url
        )


@pytest.fixture
def cancel(nats_server: EmbeddedServer, queue: Endpoint) -> Cli:
    return Cli(nats_server.url, queue)


class Endless:
    """An engine that goes on until it is stopped."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.calls = 0

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls += 1
        try:
            yield {"n": 0}
            self.started.set()
            await context.async_killed_or_stopped()
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(
    engine: object, server: EmbeddedServer, endpoint: Endpoint
) -> AsyncGenerator[Worker]:
    settings = Settings.load(server=server.url, worker_name="w", janitor_interval=0)
    worker = Worker(engine, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    try:
        yield worker
    finally:
        worker.stop()
        await running


def outcomes(worker: Worker) -> dict[str, float]:
    families = worker.metrics.registry.collect()
    samples = [sample for family in families for sample in family.samples]
    named = [sample for sample in samples if sample.name == "dialback_outcomes_total"]
    return {sample.labels["outcome"]: sample.value for sample in named if sample.value}


@pytest.mark.parametrize("lane", Lane)
async def test_the_caller_of_a_cancelled_queued_request_is_told(
    lane: Lane,
    cancel: Cli,
    queue_client: QueueClient,
    queue: Endpoint,
    requester: ScriptedRequester,
) -> None:
    await put(queue_client, queue, "req-1", lane=lane, payload=request(requester))
    running = asyncio.create_task(cancel("req-1", "-y", "--reason", "wrong prompt"))
    error = await heard(requester)
    ran = await running
    assert error["error_type"] == {"Backend": "Cancelled"}
    assert error["message"] == "an operator cancelled the request: wrong prompt"
    assert ran.exit_code == 0
    assert ran.json == [
        {
            "endpoint": str(queue),
            "sequence": 1,
            "request_id": "req-1",
            "status": "cancelled",
            "worker": None,
            "caller_told": True,
            "reason": "",
        }
    ]
    await nothing_left(queue_client, queue)


async def test_a_request_that_waits_for_a_retry_is_cancelled(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    await put(queue_client, queue, "req-1", payload=request(requester))
    message, _ = await take(queue_client, queue)
    await queue_client.settler.confirm(message, b'-NAK {"delay": 3600000000000}')
    running = asyncio.create_task(cancel("req-1", "-y"))
    error = await heard(requester)
    assert (await running).json[0]["status"] == "cancelled"
    assert error["message"] == "an operator cancelled the request"
    await nothing_left(queue_client, queue)


async def test_a_running_request_is_ended_by_its_worker(
    cancel: Cli, nats_server: EmbeddedServer, queue_client: QueueClient, queue: Endpoint
) -> None:
    engine = Endless()
    async with (
        serving(engine, nats_server, queue) as worker,
        Requester(Settings.load(server=nats_server.url)) as caller,
    ):
        async with caller.generate(str(queue), {}, request_id="r-run") as stream:
            assert await anext(stream) == {"n": 0}
            await engine.started.wait()
            ran = await cancel("r-run", "-y", "--reason", "enough")
            with pytest.raises(ResponseError, match="an operator cancelled the request: enough"):
                await anext(stream)
        await engine.ended.wait()
        await nothing_left(queue_client, queue)

        async def counted() -> dict[str, float]:
            return outcomes(worker)

        await eventually(counted, lambda seen: seen == {"cancelled": 1})
    (row,) = ran.json
    assert (row["status"], row["caller_told"]) == ("cancelled", None)
    assert row["worker"].startswith("w-")


async def test_a_dynamo_request_is_found_by_the_id_in_its_payload(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint, requester: ScriptedRequester
) -> None:
    for request_id in ("one", "two", "three"):
        await put(queue_client, queue, "dynamo", payload=request(requester, request_id))
    running = asyncio.create_task(cancel("two", "-y"))
    await heard(requester)
    (row,) = (await running).json
    assert (row["request_id"], row["sequence"], row["status"]) == ("two", 2, "cancelled")
    assert await stored(queue_client, queue.stream) == 2


@pytest.mark.parametrize(("given", "batches"), [("r1", 0), ("r2", 3)])
async def test_the_leader_answers_a_search_by_subject_and_any_replica_one_by_payload(
    given: str,
    batches: int,
    queue_client: QueueClient,
    queue: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replica that lags does not know a request that has just been accepted."""
    await put(queue_client, queue, "r1", payload=request_of("r1"))
    await put(queue_client, queue, "dynamo", payload=request_of("r2"))
    client, sent = queue_client.connection, list[str]()
    publish = client.publish

    async def noted(subject: str, *arguments: Any, **named: Any) -> None:
        sent.append(subject)
        await publish(subject, *arguments, **named)

    monkeypatch.setattr(client, "publish", noted)
    found = await CancelSearch(client, queue_client.api, queue).find(given, scan=10)
    assert [one.request_id for one in found] == [given]
    assert f"$JS.API.STREAM.MSG.GET.{queue.stream}" in sent
    assert sum(".DIRECT.GET." in subject for subject in sent) == batches


async def test_a_dynamo_request_beyond_the_scan_is_not_found(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint
) -> None:
    for request_id in ("one", "two", "three"):
        await put(queue_client, queue, "dynamo", payload=request_of(request_id))
    assert (await cancel("three", "-y", "--scan", "2")).exit_code == 3
    assert (await cancel("three", "--dry-run", "--scan", "3")).json[0]["sequence"] == 3


async def test_all_messages_of_an_id_are_cancelled(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint
) -> None:
    for lane in (Lane.HIGH, Lane.LOW, Lane.LOW):
        await put(queue_client, queue, "r1", lane=lane, payload=request_of("r1"))
    ran = await cancel("r1", "-y")
    assert [row["status"] for row in ran.json] == ["cancelled"] * 3
    assert {row["caller_told"] for row in ran.json} == {False}
    await nothing_left(queue_client, queue)


async def test_an_unknown_id_is_an_error_and_nothing_is_cancelled(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint
) -> None:
    await put(queue_client, queue, "r1", payload=request_of("r1"))
    ran = await cancel("r1", "r2", "-y")
    assert ran.exit_code == 3
    assert "no request 'r2'" in ran.stderr
    assert await stored(queue_client, queue.stream) == 1


async def test_a_message_whose_payload_names_another_id_is_not_it(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint
) -> None:
    await put(queue_client, queue, "r1", payload=request_of("other"))
    assert (await cancel("r1", "-y")).exit_code == 3
    assert (await cancel("other", "--dry-run")).json[0]["sequence"] == 1


async def test_an_unreadable_message_is_cancelled_by_its_sequence(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint
) -> None:
    await put(queue_client, queue, "r1", payload=b"garbage")
    (row,) = (await cancel("seq:1", "-y")).json
    assert (row["request_id"], row["status"], row["caller_told"]) == ("seq:1", "cancelled", False)
    assert await stored(queue_client, queue.stream) == 0


async def test_a_dry_run_shows_the_plan_and_changes_nothing(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint
) -> None:
    await put(queue_client, queue, "r1", payload=request_of("r1"))
    await put(queue_client, queue, "r2", payload=request_of("r2"))
    await take(queue_client, queue)
    ran = await cancel("r1", "r2", "--dry-run")
    assert [(row["request_id"], row["state"], row["status"]) for row in ran.json] == [
        ("r1", "waiting", "planned"),
        ("r2", "queued", "planned"),
    ]
    assert await stored(queue_client, queue.stream) == 2


async def test_without_a_terminal_a_yes_is_needed(
    cancel: Cli, queue_client: QueueClient, queue: Endpoint
) -> None:
    await put(queue_client, queue, "r1", payload=request_of("r1"))
    ran = await cancel("r1")
    assert (ran.exit_code, ran.stdout) == (4, "")
    assert await stored(queue_client, queue.stream) == 1


async def test_a_worker_that_gets_the_request_after_the_cancel_does_not_run_it(
    nats_server: EmbeddedServer,
    queue_client: QueueClient,
    queue: Endpoint,
    requester: ScriptedRequester,
) -> None:
    """The operator found it queued and dials; the worker takes it before it is deleted."""
    engine = Endless()
    await put(queue_client, queue, "req-1", payload=request(requester))
    message, _ = await take(queue_client, queue)
    async with serving(engine, nats_server, queue) as worker:

        async def listening() -> bool:
            return bool((await lane_state(queue_client, queue))["num_waiting"])

        await eventually(listening)
        order = CancelOrder("req-1", "late")
        assert await ask_workers(queue_client.connection, queue, order, within=0.2) == []
        await queue_client.settler.confirm(message, b"-NAK")
        error = await heard(requester)
        await nothing_left(queue_client, queue)
        assert error["message"] == "an operator cancelled the request: late"

        async def counted() -> dict[str, float]:
            return outcomes(worker)

        await eventually(counted, lambda seen: seen == {"cancelled": 1})
    assert engine.calls == 0
