import nats.errors
import pytest

from dialback.errors import (
    PayloadTooLargeError,
    QueueError,
    QueueFullError,
    ServerUnavailableError,
    StreamMissingError,
)
from dialback.queue.api import WrongLastSequenceError
from dialback.queue.publisher import MESSAGE_ID_HEADER, PubAck, Publisher
from support.fake_jetstream import FakeJetStream

STORED = b'{"stream":"S","seq":7}'


async def test_the_acknowledgement_is_returned() -> None:
    server = FakeJetStream(answers=[STORED, b'{"stream":"S","seq":7,"duplicate":true}'])
    publisher = Publisher(server.client)
    first = await publisher.publish("x", b"1", {MESSAGE_ID_HEADER: "m"})
    second = await publisher.publish("x", b"1", {MESSAGE_ID_HEADER: "m"})
    assert first == PubAck(stream="S", sequence=7, duplicate=False)
    assert second == PubAck(stream="S", sequence=7, duplicate=True)
    assert server.requests == [("x", b"1", {"Nats-Msg-Id": "m"})] * 2


async def test_an_unknown_fate_is_asked_again_with_the_same_id() -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError(), TimeoutError(), STORED])
    await Publisher(server.client).publish("x", b"1", {MESSAGE_ID_HEADER: "m"})
    assert server.requests == [("x", b"1", {"Nats-Msg-Id": "m"})] * 3


async def test_without_retry_the_first_failure_is_raised() -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError()])
    with pytest.raises(ServerUnavailableError, match="was not acknowledged"):
        await Publisher(server.client).publish("x", b"1", {}, retry=False)


async def test_nothing_is_published_while_disconnected() -> None:
    server = FakeJetStream(is_connected=False)
    with pytest.raises(ServerUnavailableError, match="not connected"):
        await Publisher(server.client, give_up_after=0).publish("x", b"1", {})
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (nats.errors.NoRespondersError(), StreamMissingError),
        (nats.errors.BadHeaderError("a b"), QueueError),
        (b'{"error":{"code":503,"err_code":10077}}', QueueFullError),
        (b'{"error":{"code":400,"err_code":10071}}', WrongLastSequenceError),
        (b'{"error":{"code":400,"err_code":10054}}', PayloadTooLargeError),
        (b"hello", QueueError),
        (b"", QueueError),
    ],
)
async def test_a_refusal_is_final(answer: bytes | Exception, kind: type[QueueError]) -> None:
    server = FakeJetStream(answers=[answer])
    with pytest.raises(kind) as raised:
        await Publisher(server.client).publish("x", b"1", {})
    assert type(raised.value) is kind
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["value", "Wörter ☃"])
async def test_headers_count_in_bytes_against_the_limit(value: str) -> None:
    block = f"NATS/1.0\r\nName: {value}\r\n\r\n".encode()
    server = FakeJetStream(answers=[STORED], max_payload=len(block) + 10)
    publisher = Publisher(server.client)
    await publisher.publish("x", bytes(10), {"Name": value})
    with pytest.raises(PayloadTooLargeError) as raised:
        await publisher.publish("x", bytes(11), {"Name": value})
    assert (raised.value.size, raised.value.limit) == (11, len(block) + 10)
    assert len(server.requests) == 1
