import pytest

from dialback.errors import StreamMissingError
from dialback.outcomes import Delivery
from dialback.queue.client import QueueClient
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters, history_of, with_history
from dialback.queue.inspection import RequeueStatus
from dialback.queue.inspector import Inspector
from dialback.queue.topology import Endpoint, Lane
from support.queue_rig import provision, put, stored, take

pytestmark = pytest.mark.integration


def record(sequence: int, *, request_id: str = "r1", reason: str = "no JSON") -> DeadLetterRecord:
    delivery = Delivery(payload=b"payload", stream="JOBS", sequence=sequence, published_ns=99)
    return DeadLetterRecord(
        request_id=request_id, outcome="invalid", reason=reason, delivery=delivery, worker="pod-1"
    )


@pytest.fixture
async def letters(queue_client: QueueClient, endpoint: Endpoint) -> DeadLetters:
    await provision(queue_client, endpoint)
    return DeadLetters(queue_client.api, queue_client.publisher, endpoint)


async def test_one_origin_is_one_letter(
    letters: DeadLetters, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    for _ in range(3):
        await letters.write(record(1))
    assert await stored(queue_client, endpoint.dead_stream) == 1


async def test_another_origin_of_the_same_request_is_another_letter(
    letters: DeadLetters, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    for sequence in (1, 2, 2):
        await letters.write(record(sequence))
    found = [m async for m in queue_client.api.messages(endpoint.dead_stream, limit=10)]
    assert [letter.headers["Dialback-Origin"] for letter in found] == ["JOBS:1:99", "JOBS:2:99"]
    assert {letter.subject for letter in found} == {endpoint.dead_subject("r1")}


async def test_requests_do_not_get_into_each_other_s_way(
    letters: DeadLetters, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    for request_id in ("r1", "r2", "not.a token", "é"):
        await letters.write(record(1, request_id=request_id))
    assert await stored(queue_client, endpoint.dead_stream) == 4
    limited = [m async for m in queue_client.api.messages(endpoint.dead_stream, limit=2)]
    assert [letter.sequence for letter in limited] == [1, 2]


async def test_a_letter_is_the_message_with_its_headers_and_the_reason(
    letters: DeadLetters, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    headers = {"Dialback-Deadline": "5", "X-Note": "Wörter", "Nats-Msg-Id": "m1"}
    await put(queue_client, endpoint, "r1", payload=b"\x00\xff", headers=headers)
    message, info = await take(queue_client, endpoint)
    delivery = Delivery(
        payload=message.data,
        headers=dict(message.headers or {}),
        subject=message.subject,
        stream=info.stream,
        sequence=info.sequence,
        number=info.number,
        published_ns=info.published_ns,
    )
    lines = DeadLetterRecord(
        request_id="r1", outcome="invalid", reason="bad\r\nX: 1 é", delivery=delivery, worker="w"
    )
    await letters.write(lines)
    letter = await queue_client.api.get_last(endpoint.dead_stream, endpoint.dead_subject("r1"))
    assert letter.payload == b"\x00\xff"
    assert letter.headers == {
        "Dialback-Deadline": "5",
        "X-Note": "Wörter",
        "Dialback-Outcome": "invalid",
        "Dialback-Reason": "bad??X: 1 ?",
        "Dialback-Request-Id": "r1",
        "Dialback-Origin": f"{endpoint.stream}:1:{info.published_ns}",
        "Dialback-Origin-Subject": endpoint.request_subject(Lane.NORMAL, "r1"),
        "Dialback-Deliveries": "1",
        "Dialback-Worker": "w",
        "Nats-Expected-Last-Subject-Sequence": "0",
    }


async def test_the_history_survives_a_requeue(
    letters: DeadLetters, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await letters.write(record(1, reason="first"))
    subject = endpoint.dead_subject("r1")
    letter = await queue_client.api.get_last(endpoint.dead_stream, subject)
    await queue_client.api.delete_message(endpoint.dead_stream, letter.sequence)
    await put(queue_client, endpoint, "r1", headers=with_history(letter.headers))
    message, _ = await take(queue_client, endpoint)
    again = Delivery(payload=b"", headers=dict(message.headers or {}), stream="JOBS", sequence=2)
    second = DeadLetterRecord(
        request_id="r1", outcome="invalid", reason="second", delivery=again, worker="pod-1"
    )
    await letters.write(second)
    letter = await queue_client.api.get_last(endpoint.dead_stream, subject)
    assert letter.headers["Dialback-Reason"] == "second"
    assert [entry["reason"] for entry in history_of(letter.headers)] == ["first"]


async def test_a_header_that_cannot_be_published_does_not_keep_a_letter_from_being_stored(
    letters: DeadLetters, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    headers = {"kept@by-another-client": "1", "Kept": "2"}
    delivery = Delivery(payload=b"", headers=headers, stream="JOBS", sequence=1)
    await letters.write(
        DeadLetterRecord(
            request_id="r1", outcome="poison", reason="", delivery=delivery, worker="w"
        )
    )
    letter = await queue_client.api.get_last(endpoint.dead_stream, endpoint.dead_subject("r1"))
    assert letter.headers["Kept"] == "2"
    assert "kept@by-another-client" not in letter.headers


async def test_without_its_stream_a_letter_is_an_error(
    letters: DeadLetters, queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await queue_client.api.request(f"STREAM.DELETE.{endpoint.dead_stream}")
    with pytest.raises(StreamMissingError):
        await letters.write(record(1))


@pytest.mark.parametrize("missing", [0, 100, 399])
async def test_a_payload_that_leaves_no_room_for_a_reason_is_cut_and_never_requeued(
    queue_client: QueueClient, endpoint: Endpoint, missing: int
) -> None:
    await provision(queue_client, endpoint)
    size = queue_client.connection.max_payload - missing
    delivery = Delivery(
        payload=b"x" * size,
        subject=endpoint.request_subject(Lane.NORMAL, "big"),
        stream=endpoint.stream,
        sequence=1,
    )
    record = DeadLetterRecord(
        request_id="big", outcome="invalid", reason="r" * 1000, delivery=delivery, worker="w"
    )
    for _ in range(2):  # again after a crash: still one letter
        await DeadLetters(queue_client.api, queue_client.publisher, endpoint).write(record)
    inspector = Inspector(queue_client)
    (letter,) = await inspector.dead_letters(endpoint, 10)
    assert letter.headers["Dialback-Truncated"] == str(size)
    assert size - 1024 < len(letter.payload) < size
    assert letter.outcome == "invalid"
    said = f"payload cut to {len(letter.payload)} of {size} bytes"
    assert letter.reason == "r" * 200 + f" [{said}]"
    requeued = await inspector.requeue(endpoint, letter.sequence)
    assert requeued.status is RequeueStatus.FAILED
    assert f"cut to {len(letter.payload)} of {size} bytes" in requeued.reason
    assert await stored(queue_client, endpoint.dead_stream) == 1


async def test_a_payload_that_leaves_no_room_for_all_headers_gets_the_least_of_them(
    queue_client: QueueClient, endpoint: Endpoint
) -> None:
    await provision(queue_client, endpoint)
    delivery = Delivery(
        payload=b"x" * (1024 * 1024 - 900),
        headers={"traceparent": "t" * 500},
        subject=endpoint.request_subject(Lane.NORMAL, "big"),
        stream=endpoint.stream,
        sequence=1,
    )
    record = DeadLetterRecord(
        request_id="big", outcome="invalid", reason="r" * 1000, delivery=delivery, worker="w"
    )
    for _ in range(2):  # again after a crash: still one letter
        await DeadLetters(queue_client.api, queue_client.publisher, endpoint).write(record)
    letter = await queue_client.api.get_last(endpoint.dead_stream, endpoint.dead_subject("big"))
    assert letter.payload == delivery.payload
    assert letter.headers["Dialback-Outcome"] == "invalid"
    assert letter.headers["Dialback-Reason"] == "r" * 200
    assert "traceparent" not in letter.headers
    info = await queue_client.api.stream_info(endpoint.dead_stream)
    assert info["state"]["messages"] == 1
