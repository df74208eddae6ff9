"""The requester against a real nats-server and a worker in the same process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dialback import (
    ConfigError,
    Context,
    DeadlineExceededError,
    DialbackError,
    DuplicateRequestError,
    EndState,
    PayloadTooLargeError,
    QueueFullError,
    Requester,
    RequestTimeoutError,
    ResponseStream,
    ServerUnavailableError,
    Settings,
    StreamInterrupted,
    StreamMissingError,
    Worker,
    WorkerExit,
)
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane, QueueSettings, Topology
from support.frames import request_payload
from support.scripted_requester import ScriptedRequester, items_of

pytestmark = pytest.mark.integration


async def tell(request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
    """An engine that tells what it knows."""
    if delay := request.get("delay"):
        await asyncio.sleep(delay)
    yield {
        "request": request,
        "id": context.id(),
        "metadata": context.metadata,
        "lane": context.lane,
        "delivery": context.delivery,
        "trace": context.trace_id,
        "deadline": context.deadline is not None,
    }
    for i in range(request.get("n", 0)):
        yield i
    if request.get("forever"):
        await context.async_killed_or_stopped()


@asynccontextmanager
async def serving(settings: Settings, endpoint: Endpoint) -> AsyncGenerator[Worker]:
    """A worker in this event loop; it must drain cleanly at the end."""
    worker = Worker(tell, endpoint=str(endpoint), settings=settings)
    running = asyncio.create_task(worker.run(signals=False))
    try:
        yield worker
    finally:
        worker.stop()
        assert await running is WorkerExit.CLEAN


@pytest.fixture
def settings(nats_server: EmbeddedServer) -> Settings:
    return Settings.load(server=nats_server.url, shutdown_budget=5)


@pytest.fixture
async def queue(queue_client: QueueClient, endpoint: Endpoint) -> Endpoint:
    """The endpoint's queue, without any worker."""
    await Topology(queue_client.api, endpoint, QueueSettings()).ensure()
    return endpoint


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("lane", list(Lane))
async def test_what_was_sent_arrives_in_either_codec_and_every_lane(
    settings: Settings, queue: Endpoint, codec: str, lane: Lane
) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    request = {"text": "grüße 世界 \x00\n", "deep": [[{"a": None}], 1.5, -(2**40), True]}
    async with serving(settings, queue), Requester(settings) as requester:
        stream = requester.generate(
            str(queue),
            request,
            codec=codec,
            lane=lane,
            request_id="an id/with.odd chars",
            metadata={"b": "2", "a": "1"},
            headers={"traceparent": trace},
        )
        async with stream:
            items = [item async for item in stream]

    assert items == [
        {
            "request": request,
            "id": "an id/with.odd chars",
            "metadata": {"a": "1", "b": "2"},
            "lane": lane,
            "delivery": 1,
            "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
            "deadline": True,
        }
    ]
    assert stream.end is EndState.COMPLETE


async def test_a_hundred_streams_at_once_over_one_listener(
    settings: Settings, queue: Endpoint
) -> None:
    async with serving(settings, queue), Requester(settings) as requester:

        async def ask(number: int) -> list[Any]:
            async with requester.generate(str(queue), {"n": number, "me": number}) as stream:
                return [item async for item in stream]

        answers = await asyncio.gather(*(ask(number) for number in range(100)))

    for number, items in enumerate(answers):
        assert items[0]["request"]["me"] == number
        assert items[1:] == list(range(number))


async def test_a_megabyte_item_arrives_whole(settings: Settings, queue: Endpoint) -> None:
    big = "x" * 900_000
    async with serving(settings, queue), Requester(settings) as requester:
        async with requester.generate(str(queue), {"big": big}) as stream:
            item = await anext(stream)
    assert item["request"]["big"] == big


async def test_an_endpoint_without_a_queue_is_an_error_that_says_what_to_do(
    settings: Settings, endpoint: Endpoint
) -> None:
    async with Requester(settings) as requester:
        stream = requester.generate(str(endpoint), {})
        with pytest.raises(StreamMissingError, match=f"dialback worker run ENGINE .* {endpoint}"):
            await stream.__aenter__()
    assert stream.end is EndState.CANCELLED


async def test_a_full_queue_refuses_and_stores_nothing(
    settings: Settings, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await Topology(queue_client.api, endpoint, QueueSettings(max_messages=1)).ensure()
    async with Requester(settings) as requester:
        async with requester.generate(str(endpoint), {}, timeout=30):
            with pytest.raises(QueueFullError, match="maximum messages exceeded"):
                await requester.generate(str(endpoint), {}).__aenter__()


async def test_a_request_over_max_payload_is_refused_before_it_is_sent(
    settings: Settings, queue: Endpoint
) -> None:
    async with Requester(settings) as requester:
        with pytest.raises(PayloadTooLargeError, match="raise max_payload") as caught:
            await requester.generate(str(queue), {"big": "x" * 1_100_000}).__aenter__()
        with pytest.raises(PayloadTooLargeError):
            requester.generate(str(queue), {}, metadata={"big": "x" * 140_000})
    assert caught.value.limit == 1024 * 1024 - 1024


async def test_a_request_id_that_was_used_a_moment_ago_is_refused(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    async with Requester(settings) as requester:
        async with requester.generate(str(queue), {}, request_id="same"):
            with pytest.raises(DuplicateRequestError, match="'same' was used"):
                await requester.generate(str(queue), {}, request_id="same").__aenter__()
            info = await queue_client.api.stream_info(queue.stream)
    assert info["state"]["messages"] == 1


async def test_no_first_item_in_time_is_an_error_and_the_request_is_withdrawn(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    async with Requester(settings) as requester:
        async with requester.generate(str(queue), {}, timeout=0.1) as stream:
            with pytest.raises(RequestTimeoutError, match=f"is one running for {queue}"):
                await anext(stream)
    assert (await queue_client.api.stream_info(queue.stream))["state"]["messages"] == 0


async def test_a_dial_back_without_an_item_in_time_says_so(
    settings: Settings, queue: Endpoint
) -> None:
    async with serving(settings, queue), Requester(settings) as requester:
        async with requester.generate(str(queue), {"delay": 60}, timeout=1.5) as stream:
            with pytest.raises(RequestTimeoutError, match="dialled back, but no item"):
                await anext(stream)


async def test_a_stream_that_outlasts_its_deadline_is_ended(
    settings: Settings, queue: Endpoint
) -> None:
    async with serving(settings, queue), Requester(settings) as requester:
        async with requester.generate(str(queue), {"delay": 60}, timeout=50, deadline=1) as stream:
            with pytest.raises(DeadlineExceededError, match="within 1 s"):
                await anext(stream)
    assert stream.end is EndState.CANCELLED


async def test_a_request_that_expired_in_the_queue_is_answered_and_not_run(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    subject = queue.request_subject(Lane.NORMAL, "req-1")
    async with ScriptedRequester() as scripted:
        payload = request_payload(scripted.address, {"n": 1})
        await queue_client.publisher.publish(subject, payload, {"Dialback-Start-By": "1"})
        async with serving(settings, queue) as worker:
            call = await scripted.connection()
            frames = await call.frames()
            await call.close()
    items = items_of(frames)
    assert [item.get("data", {}).get("event") for item in items] == ["error", None]
    assert items[0]["data"]["error"]["error_type"] == {"Backend": "ResponseTimeout"}
    assert items[-1] == {"complete_final": True}
    expired = worker.metrics.registry.get_sample_value(
        "dialback_outcomes_total", {"outcome": "expired"}
    )
    assert expired == 1


async def test_stop_before_the_dial_back_is_heard_by_the_worker(
    settings: Settings, queue: Endpoint
) -> None:
    async with Requester(settings) as requester:
        async with requester.generate(str(queue), {"forever": True}) as stream:
            await stream.stop()
            async with serving(settings, queue) as worker:
                assert [item async for item in stream][1:] == []
    assert stream.end is EndState.COMPLETE
    stopped = worker.metrics.registry.get_sample_value(
        "dialback_outcomes_total", {"outcome": "stopped"}
    )
    assert stopped == 1


async def test_closing_the_requester_interrupts_its_streams_and_withdraws_what_waits(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    requester = Requester(settings)
    await requester.start()
    streams = [requester.generate(str(queue), {}) for _ in range(20)]
    for stream in streams:
        await stream.__aenter__()
    await requester.close()
    for stream in streams:
        with pytest.raises(StreamInterrupted, match="0 items: the requester was closed"):
            await anext(stream)
        assert stream.end is EndState.BROKEN
        await stream.__aexit__(None, None, None)
    assert (await queue_client.api.stream_info(queue.stream))["state"]["messages"] == 0
    with pytest.raises(RuntimeError, match="not started"):
        requester.generate(str(queue), {})


async def test_a_task_that_iterates_is_told_that_the_requester_was_closed(
    settings: Settings, queue: Endpoint
) -> None:
    items: asyncio.Queue[Any] = asyncio.Queue()

    async def iterate(stream: ResponseStream) -> None:
        async with stream:
            async for item in stream:
                items.put_nowait(item)

    async with serving(settings, queue) as worker:
        async with Requester(settings) as requester:
            stream = requester.generate(str(queue), {"forever": True, "n": 2})
            iterating = asyncio.create_task(iterate(stream))
            assert [await items.get() for _ in range(3)][1:] == [0, 1]
        with pytest.raises(StreamInterrupted, match="3 items: the requester was closed"):
            await iterating
    killed = worker.metrics.registry.get_sample_value(
        "dialback_outcomes_total", {"outcome": "killed"}
    )
    assert killed == 1


async def test_a_task_that_waits_for_its_first_item_is_told_that_the_requester_was_closed(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    entered = asyncio.Event()

    async def wait(stream: ResponseStream) -> None:
        async with stream:
            entered.set()
            await anext(stream)

    async with Requester(settings) as requester:
        waiting = asyncio.create_task(wait(requester.generate(str(queue), {})))
        await entered.wait()
    with pytest.raises(StreamInterrupted, match="0 items: the requester was closed"):
        await waiting
    assert (await queue_client.api.stream_info(queue.stream))["state"]["messages"] == 0


async def test_a_request_that_is_being_published_is_withdrawn_too(
    settings: Settings, queue: Endpoint, queue_client: QueueClient
) -> None:
    async with Requester(settings) as requester:
        stream = requester.generate(str(queue), {})
        entering = asyncio.create_task(stream.__aenter__())
        await asyncio.sleep(0)  # registered, and not acknowledged yet
    await entering
    with pytest.raises(StreamInterrupted):
        await anext(stream)
    await stream.__aexit__(None, None, None)
    assert (await queue_client.api.stream_info(queue.stream))["state"]["messages"] == 0


async def test_a_requester_closes_without_its_server(
    own_server: EmbeddedServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.requester.WITHDRAWAL", 0.01)
    settings = Settings.load(server=own_server.url)
    client = await QueueClient.open(settings.server_address(), name="test", role="operator")
    await Topology(client.api, endpoint, QueueSettings()).ensure()
    await client.close()
    async with Requester(settings) as requester:
        stream = await requester.generate(str(endpoint), {}).__aenter__()
        await own_server.kill()
    with pytest.raises(StreamInterrupted):
        await anext(stream)
    await stream.__aexit__(None, None, None)


async def test_no_server_is_an_error_that_says_what_to_do() -> None:
    settings = Settings.load(server="nats://127.0.0.1:1", connect_within=0.2)
    with pytest.raises(ServerUnavailableError, match="NATS_SERVER"):
        async with Requester(settings):
            pass


@pytest.mark.parametrize("name", ["a.b", "A.b.c", "a._b.c", "a.b.c.d", ""])
async def test_a_wrong_endpoint_is_refused(settings: Settings, name: str) -> None:
    async with Requester(settings) as requester:
        with pytest.raises(ConfigError):
            requester.generate(name, {})


async def test_a_request_that_cannot_be_written_is_refused(
    settings: Settings, queue: Endpoint
) -> None:
    async with Requester(settings) as requester:
        with pytest.raises(DialbackError, match="cannot write a value as json"):
            requester.generate(str(queue), {"what": object()})


@pytest.mark.parametrize(
    ("configured", "advertised"),
    [
        ({}, "127.0.0.1:"),
        ({"response_host": "lo"}, "127.0.0.1:"),
        ({"response_host": "127.0.0.1", "advertise": "example.org"}, "example.org:"),
        ({"advertise": "10.1.2.3:999"}, "10.1.2.3:999"),
    ],
)
async def test_the_advertised_address_can_be_chosen(
    nats_server: EmbeddedServer, configured: dict[str, str], advertised: str
) -> None:
    async with Requester(Settings.load(server=nats_server.url, **configured)) as requester:
        assert requester.address.startswith(advertised)


async def test_entering_a_stream_takes_no_longer_than_its_timeout(
    own_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with Requester(Settings.load(server=own_server.url)) as requester:
        await own_server.kill()
        with pytest.raises(RequestTimeoutError, match=r"did not acknowledge .* within 0.2 s"):
            await requester.generate(str(endpoint), {}, timeout=0.2).__aenter__()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"lane": "middle"}, "lane 'middle' is none of high, normal, low"),
        ({"codec": "xml"}, "codec 'xml' is none of json, msgpack"),
        ({"timeout": float("nan")}, "timeout nan is no number of seconds above 0"),
        ({"deadline": 0}, "deadline 0 is no number of seconds above 0"),
        ({"metadata": {"a": 1}}, "metadata is a map of strings; 'a' is not"),
        ({"metadata": {"a": "\ud800"}}, "metadata is a map of strings"),
    ],
)
async def test_a_wrong_argument_is_refused_before_anything_is_registered(
    settings: Settings, queue: Endpoint, arguments: dict[str, Any], says: str
) -> None:
    async with Requester(settings) as requester:
        with pytest.raises(ConfigError, match=says):
            requester.generate(str(queue), {}, **arguments)


async def test_a_stream_is_entered_once_and_before_it_is_used(
    settings: Settings, queue: Endpoint
) -> None:
    async with Requester(settings) as requester:
        stream = requester.generate(str(queue), {})
        assert (stream.end, stream.items, stream.interruptions) == (None, 0, 0)
        for use in (stream.stop, stream.kill, stream.__anext__):
            with pytest.raises(RuntimeError, match="enter the stream first"):
                await use()
        async with stream:
            with pytest.raises(RuntimeError, match="entered once"):
                await stream.__aenter__()
            assert stream.end is None


async def test_an_engine_that_asks_another_passes_its_stop_metadata_and_trace_on(
    settings: Settings, queue: Endpoint
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    outer = Context(
        "outer", {"tenant": "a"}, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    )
    async with serving(settings, queue) as worker, Requester(settings) as requester:
        stream = requester.generate(str(queue), {"forever": True}, context=outer)
        async with stream:
            first = await anext(stream)
            outer.stop_generating()
            assert [item async for item in stream] == []
    assert (first["metadata"], first["trace"]) == ({"tenant": "a"}, trace)
    assert stream.end is EndState.COMPLETE
    stopped = worker.metrics.registry.get_sample_value(
        "dialback_outcomes_total", {"outcome": "stopped"}
    )
    assert stopped == 1
