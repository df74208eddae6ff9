import asyncio
from typing import Any

import pytest

from dialback.errors import ConfigMismatchError, NotFoundError, QueueError
from dialback.queue.client import QueueClient
from dialback.queue.topology import (
    Endpoint,
    Lane,
    QueueSettings,
    Topology,
    dead_letter_stream,
    lane_consumer,
    requests_stream,
)
from support.queue_rig import LANES, provision

pytestmark = pytest.mark.integration


async def configurations(client: QueueClient, endpoint: Endpoint) -> list[dict[str, Any]]:
    """What the server has, as it says it."""
    streams = [await client.api.stream_info(s) for s in (endpoint.stream, endpoint.dead_stream)]
    lanes = [await client.api.consumer_info(endpoint.stream, lane) for lane in LANES]
    return [found["config"] for found in [*streams, *lanes]]


async def test_what_is_missing_is_created(queue_client: QueueClient, endpoint: Endpoint) -> None:
    with pytest.raises(NotFoundError):
        await queue_client.api.stream_info(endpoint.stream)
    await provision(queue_client, endpoint)
    settings = QueueSettings()
    wanted = [requests_stream(endpoint, settings), dead_letter_stream(endpoint, settings)]
    wanted += [lane_consumer(endpoint, lane, settings) for lane in Lane]
    for found, part in zip(await configurations(queue_client, endpoint), wanted, strict=True):
        metadata = found.pop("metadata")
        assert metadata | part.pop("metadata") == metadata
        assert found | part == found
    assert {endpoint.stream, endpoint.dead_stream} <= set(await queue_client.api.stream_names())


async def test_ensuring_again_changes_nothing(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    before = await configurations(queue_client, endpoint)
    await provision(queue_client, endpoint)
    assert await configurations(queue_client, endpoint) == before


async def test_what_an_operator_may_choose_is_accepted(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    chosen = QueueSettings(max_messages=7, max_ack_pending=9, max_batch=500, dead_letter_days=3)
    await Topology(queue_client.api, endpoint, chosen).ensure()
    before = await configurations(queue_client, endpoint)
    await provision(queue_client, endpoint, replicas=3)
    assert await configurations(queue_client, endpoint) == before
    assert before[0]["max_msgs"] == 7


async def test_workers_that_start_at_once_with_other_limits_share_one_queue(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    limits = [QueueSettings(max_messages=n, max_ack_pending=n) for n in range(1_000, 1_016)]
    starts = [Topology(queue_client.api, endpoint, one).ensure() for one in limits]
    await asyncio.gather(*starts)
    found = await configurations(queue_client, endpoint)
    assert found[0]["max_msgs"] in range(1_000, 1_016)


async def test_of_workers_that_start_at_once_with_other_leases_those_that_lose_are_told(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    leases = [QueueSettings(ack_wait=seconds) for seconds in range(5, 21)]
    starts = [Topology(queue_client.api, endpoint, one).ensure() for one in leases]
    ends = await asyncio.gather(*starts, return_exceptions=True)
    refused = [end for end in ends if end is not None]
    assert len(refused) >= len(leases) - 1
    assert all(isinstance(end, ConfigMismatchError) for end in refused)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"ack_wait": 5_000_000_000}, "ack_wait is 5 s, wanted 30 s"),
        ({"max_deliver": 4}, "max_deliver is 4, wanted -1"),
        ({"max_batch": 8}, "max_batch is 8, workers ask for 64"),
        ({"backoff": [30_000_000_000, 60_000_000_000]}, "backoff is set"),
    ],
)
async def test_a_consumer_that_would_break_leases_is_a_mismatch(
    queue_client: QueueClient, endpoint: Endpoint, changes: dict[str, Any], difference: str
) -> None:
    await provision(queue_client, endpoint)
    config = lane_consumer(endpoint, Lane.NORMAL, QueueSettings()) | changes
    await edit_consumer(queue_client, endpoint, config)
    text = await mismatch(queue_client, endpoint)
    assert f"consumer {endpoint.stream}/normal" in text
    assert difference in text
    assert "set DIALBACK_ACK_WAIT to the consumer's ack_wait, or edit the consumer" in text


async def test_a_consumer_with_another_filter_is_a_mismatch(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    narrow = endpoint.request_subject(Lane.LOW, "only-this")
    config = lane_consumer(endpoint, Lane.LOW, QueueSettings()) | {"filter_subject": narrow}
    await edit_consumer(queue_client, endpoint, config)
    text = await mismatch(queue_client, endpoint)
    assert f"filter_subject is {narrow}, wanted {endpoint.lane_subject(Lane.LOW)}" in text


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"retention": "limits"}, "retention is limits, wanted workqueue"),
        ({"discard": "old"}, "discard is old, wanted new"),
        ({"max_age": 3_600_000_000_000}, "max_age is 3600 s, wanted 0 s"),
        ({"allow_direct": False}, "allow_direct is None, wanted True"),
    ],
)
async def test_a_stream_that_would_lose_requests_is_a_mismatch(
    queue_client: QueueClient, endpoint: Endpoint, changes: dict[str, Any], difference: str
) -> None:
    config = requests_stream(endpoint, QueueSettings()) | changes
    await queue_client.api.create_stream(config)
    before = await queue_client.api.stream_info(endpoint.stream)
    with pytest.raises(ConfigMismatchError) as raised:
        await provision(queue_client, endpoint)
    text = str(raised.value)
    assert text.startswith(f"stream {endpoint.stream} exists with other settings: ")
    assert difference.replace("None", "False") in text.replace("None", "False")
    assert f"nats stream edit {endpoint.stream}" in text
    after = await queue_client.api.stream_info(endpoint.stream)
    assert after["config"] == before["config"]


async def test_subjects_that_another_stream_has_are_an_error_of_the_server(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    other = {"name": f"X_{endpoint.endpoint}", "subjects": [f"dialback.{endpoint}.>"]}
    await queue_client.api.create_stream(other)
    with pytest.raises(QueueError, match="overlap"):
        await provision(queue_client, endpoint)


async def edit_consumer(client: QueueClient, endpoint: Endpoint, config: dict[str, Any]) -> None:
    """As an operator would."""
    verb = f"CONSUMER.CREATE.{endpoint.stream}.{config['name']}.{config['filter_subject']}"
    if config["max_deliver"] < 0 and "backoff" in config:
        config["max_deliver"] = 10  # the server wants more deliveries than steps
    body = {"stream_name": endpoint.stream, "config": config, "action": "update"}
    await client.api.request(verb, body)


async def mismatch(client: QueueClient, endpoint: Endpoint) -> str:
    """Ensure again, which must fail and touch nothing; return what it says."""
    before = await configurations(client, endpoint)
    with pytest.raises(ConfigMismatchError) as raised:
        await provision(client, endpoint)
    assert await configurations(client, endpoint) == before
    return str(raised.value)
