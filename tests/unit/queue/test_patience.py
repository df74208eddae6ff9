import asyncio
from typing import Any

import nats.errors
import orjson
import pytest

from dialback.errors import (
    ConfigMismatchError,
    PermissionDeniedError,
    QueueError,
    ServerUnavailableError,
)
from dialback.queue.api import JetStreamApi
from dialback.queue.note import notes_stream
from dialback.queue.topology import (
    Endpoint,
    Lane,
    QueueSettings,
    Topology,
    dead_letter_stream,
    lane_consumer,
    requests_stream,
)
from dialback.tasks import cancel_and_wait
from support.fake_jetstream import FakeJetStream

ENDPOINT = Endpoint("demo", "backend", "generate")
SETTINGS = QueueSettings()
NO_STREAM = b'{"error":{"code":404,"err_code":10059,"description":"stream not found"}}'
NO_CONSUMER = b'{"error":{"code":404,"err_code":10014,"description":"consumer not found"}}'
IN_USE = (
    b'{"error":{"code":400,"err_code":10058,'
    b'"description":"stream name already in use with a different configuration"}}'
)
CONSUMER_IN_USE = b'{"error":{"code":400,"err_code":10148,"description":"consumer already exists"}}'
FORBIDDEN = b'{"error":{"code":403,"err_code":0,"description":"forbidden"}}'
QUIET = nats.errors.TimeoutError()
CREATE = f"$JS.API.STREAM.CREATE.{ENDPOINT.stream}"


def there(config: dict[str, Any]) -> bytes:
    return orjson.dumps({"config": config, "created": "2026-01-01T00:00:00Z"})


REQUESTS = requests_stream(ENDPOINT, SETTINGS)
REST = [
    there(dead_letter_stream(ENDPOINT, SETTINGS)),
    there(notes_stream(1)),
    *(there(lane_consumer(ENDPOINT, lane, SETTINGS)) for lane in Lane),
]
ALL = [there(REQUESTS), *REST]


def topology(server: FakeJetStream) -> Topology:
    return Topology(JetStreamApi(server.client), ENDPOINT, SETTINGS)


def asked(server: FakeJetStream) -> list[str]:
    return [subject for subject, _, _ in server.requests]


@pytest.mark.parametrize(
    "silence",
    [
        [QUIET],
        [nats.errors.NoRespondersError()],
        [NO_STREAM, QUIET],
        [NO_STREAM, b'{"error":{"code":503,"err_code":10008,"description":"no leader"}}'],
        [*ALL[:-1], QUIET],
    ],
    ids=["silence", "nobody", "create", "no leader", "last consumer"],
)
async def test_a_start_waits_for_a_leader_and_says_so_once(
    silence: list[bytes | Exception], caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeJetStream(answers=[*silence, QUIET, *ALL])
    await topology(server).ensure(within=3600)
    assert server.answers == []
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "waiting for JetStream")
    assert record.__dict__["endpoint"] == "demo.backend.generate"
    assert record.__dict__["reason"]


async def test_without_patience_there_is_one_try(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeJetStream(answers=[QUIET, *ALL])
    with pytest.raises(ServerUnavailableError, match=r"no answer to STREAM\.INFO"):
        await topology(server).ensure()
    assert len(server.requests) == 1
    assert caplog.records == []


async def test_patience_ends() -> None:
    server = FakeJetStream(answers=[QUIET] * 1000)
    with pytest.raises(ServerUnavailableError):
        await topology(server).ensure(within=0.2)
    assert len(server.requests) > 1


async def test_a_start_that_waits_can_be_cancelled() -> None:
    server = FakeJetStream(answers=[QUIET] * 1000)
    starting = asyncio.create_task(topology(server).ensure(within=3600))
    while not server.requests:  # noqa: ASYNC110 -- the fake does not say when
        await asyncio.sleep(0)
    await cancel_and_wait(starting)
    assert starting.cancelled()


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([NO_STREAM, FORBIDDEN, NO_STREAM], PermissionDeniedError),
        ([there(REQUESTS | {"retention": "limits"})], ConfigMismatchError),
    ],
)
async def test_what_waiting_does_not_help_is_not_tried_again(
    answers: list[bytes | Exception], error: type[QueueError]
) -> None:
    server = FakeJetStream(answers=answers)
    with pytest.raises(error):
        await topology(server).ensure(within=3600)
    assert server.answers == []


async def test_a_stream_that_another_worker_creates_meanwhile_may_have_settings_of_its_own() -> (
    None
):
    other = there(REQUESTS | {"num_replicas": 3, "max_msgs": 7})
    server = FakeJetStream(answers=[NO_STREAM, IN_USE, other, *REST])
    await topology(server).ensure()
    assert asked(server).count(CREATE) == 1


async def test_a_bucket_that_another_worker_creates_meanwhile_may_have_settings_of_its_own() -> (
    None
):
    bucket = there(notes_stream(3))
    server = FakeJetStream(answers=[*ALL[:2], NO_STREAM, IN_USE, bucket, *ALL[3:]])
    await topology(server).ensure()
    assert server.answers == []


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            [NO_STREAM, IN_USE, there(REQUESTS | {"discard": "old"})],
            "discard is old, wanted new",
        ),
        (
            [
                *ALL[:3],
                NO_CONSUMER,
                CONSUMER_IN_USE,
                there(lane_consumer(ENDPOINT, Lane.HIGH, QueueSettings(ack_wait=5))),
            ],
            "ack_wait is 5 s, wanted 30 s",
        ),
    ],
)
async def test_what_another_worker_creates_meanwhile_is_a_mismatch_if_it_matters(
    answers: list[bytes | Exception], said: str
) -> None:
    server = FakeJetStream(answers=answers)
    with pytest.raises(ConfigMismatchError, match=said):
        await topology(server).ensure()


async def test_a_refusal_to_create_what_is_still_missing_is_the_server_s() -> None:
    overlap = b'{"error":{"code":400,"err_code":10065,"description":"subjects overlap"}}'
    server = FakeJetStream(answers=[NO_STREAM, overlap, NO_STREAM])
    with pytest.raises(QueueError, match=r"subjects overlap .*error 10065"):
        await topology(server).ensure()
