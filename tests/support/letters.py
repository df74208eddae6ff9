"""Queues with requests and dead letters in them, for tests of what operators see."""

import time
from typing import Any

from dialback.outcomes import Delivery
from dialback.queue.client import QueueClient
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters
from dialback.queue.publisher import PubAck
from dialback.queue.topology import Endpoint, Lane, QueueSettings, Topology
from support.frames import request_payload, tcp_info

CALLER = "127.0.0.1:9"


def request_of(request_id: str, value: Any = None) -> bytes:
    """The payload of a good request that dials back where nobody listens."""
    info = tcp_info(CALLER, context=request_id)
    return request_payload(CALLER, value or {"n": 3}, id=request_id, info=info)


async def provision(client: QueueClient, endpoint: Endpoint) -> None:
    """Create the endpoint's streams and consumers, as a worker does."""
    await Topology(client.api, endpoint, QueueSettings()).ensure()


async def publish(
    client: QueueClient,
    endpoint: Endpoint,
    request_id: str,
    *,
    lane: Lane = Lane.NORMAL,
    payload: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> PubAck:
    """Queue a request."""
    content = payload if payload is not None else request_of(request_id)
    subject = endpoint.request_subject(lane, request_id)
    return await client.publisher.publish(subject, content, headers or {})


async def bury(
    client: QueueClient,
    endpoint: Endpoint,
    request_id: str,
    *,
    sequence: int = 1,
    payload: bytes | None = None,
    headers: dict[str, str] | None = None,
    subject: str | None = None,
    lane: Lane = Lane.NORMAL,
) -> None:
    """Write a dead letter as a worker would, with a request that is gone from the queue."""
    content = payload if payload is not None else request_of(request_id)
    delivery = Delivery(
        payload=content,
        headers=headers or {},
        subject=subject or endpoint.request_subject(lane, "token"),
        lane=lane.value,
        stream=endpoint.stream,
        sequence=sequence,
        number=2,
        published_ns=time.time_ns(),
    )
    record = DeadLetterRecord(
        request_id=request_id,
        outcome="requester_gone",
        reason="nobody listens at 127.0.0.1:9",
        delivery=delivery,
        worker="w-1",
    )
    await DeadLetters(client.api, client.publisher, endpoint).write(record)


async def consumers(client: QueueClient, endpoint: Endpoint) -> list[int]:
    """The numbers of consumers of the endpoint's two streams."""
    streams = (endpoint.stream, endpoint.dead_stream)
    return [(await client.api.stream_info(s))["state"]["consumer_count"] for s in streams]


async def depth(client: QueueClient, stream: str) -> int:
    """The number of messages in a stream."""
    return int((await client.api.stream_info(stream))["state"]["messages"])
