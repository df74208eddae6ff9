import asyncio
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import pytest
from nats.aio.msg import Msg
from typing_extensions import override

from dialback.errors import (
    PayloadTooLargeError,
    QueueError,
    QueueFullError,
    ServerUnavailableError,
    StreamMissingError,
)
from dialback.queue.api import WrongLastSequenceError
from dialback.queue.publisher import (
    MESSAGE_ID_HEADER,
    OutcomeUnknownError,
    PubAck,
    Publisher,
)
from support.fake_jetstream import FakeJetStream, message

STORED = b'{"stream":"S","seq":7}'
DUPLICATE = b'{"stream":"S","seq":7,"duplicate":true}'
NOBODY = nats.errors.NoRespondersError()
NO_STREAM = b'{"total":0,"streams":null}'
A_STREAM = b'{"total":1,"streams":["S"]}'
NAMES = "$JS.API.STREAM.NAMES"


def asked(server: FakeJetStream) -> list[str]:
    return [subject for subject, _, _ in server.requests]


async def test_the_acknowledgement_is_returned() -> None:
    server = FakeJetStream(answers=[STORED, DUPLICATE])
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
        (nats.errors.BadHeaderError("a b"), QueueError),
        (b'{"error":{"code":503,"err_code":10077}}', QueueFullError),
        (b'{"error":{"code":400,"err_code":10071}}', WrongLastSequenceError),
        (b'{"error":{"code":400,"err_code":10054}}', PayloadTooLargeError),
        (b"hello", QueueError),
        (b"", QueueError),
        (b"{}", QueueError),
        (b"[]", QueueError),
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


# --- what "no responders" means -----------------------------------------------------------


async def test_a_subject_that_no_stream_takes_is_said_after_asking() -> None:
    server = FakeJetStream(answers=[NOBODY, NO_STREAM])
    with pytest.raises(StreamMissingError, match="no stream takes subject x"):
        await Publisher(server.client).publish("x", b"1", {})
    assert asked(server) == ["x", NAMES]


async def test_a_stream_without_a_leader_is_waited_for() -> None:
    server = FakeJetStream(answers=[NOBODY, A_STREAM, NOBODY, A_STREAM, STORED])
    ack = await Publisher(server.client).publish("x", b"1", {MESSAGE_ID_HEADER: "m"})
    assert ack == PubAck(stream="S", sequence=7, duplicate=False)
    assert asked(server) == ["x", NAMES, "x", NAMES, "x"]


async def test_a_stream_without_a_leader_for_too_long_is_unavailable_and_nothing_is_stored() -> (
    None
):
    server = FakeJetStream(answers=[NOBODY, A_STREAM])
    with pytest.raises(ServerUnavailableError, match="stream S has no leader") as raised:
        await Publisher(server.client, give_up_after=0).publish("x", b"1", {})
    assert type(raised.value) is ServerUnavailableError


async def test_a_server_without_jetstream_is_named() -> None:
    server = FakeJetStream(answers=[NOBODY, NOBODY])
    with pytest.raises(ServerUnavailableError, match="start nats-server with -js"):
        await Publisher(server.client).publish("x", b"1", {}, retry=False)


async def test_a_question_that_is_not_answered_is_not_repeated_and_both_answers_are_named() -> None:
    server = FakeJetStream(answers=[NOBODY, TimeoutError(), NOBODY])
    publisher = Publisher(server.client)
    for _ in range(2):
        with pytest.raises(ServerUnavailableError) as raised:
            await publisher.publish("x", b"1", {}, retry=False)
        for words in ("no stream takes subject x", "has no leader", "no permission"):
            assert words in str(raised.value)
    assert asked(server) == ["x", NAMES, "x"]


# --- an outcome that stays unknown --------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({MESSAGE_ID_HEADER: "m"}, "may be stored all the same: repeating it with the same id"),
        ({}, "may be stored all the same$"),
    ],
)
async def test_an_outcome_that_stays_unknown_is_said(headers: dict[str, str], words: str) -> None:
    server = FakeJetStream(answers=[TimeoutError(), TimeoutError()])
    with pytest.raises(OutcomeUnknownError, match=words):
        await Publisher(server.client, give_up_after=0).publish("x", b"1", headers)


class _Breaks(FakeJetStream):
    """Never acknowledges, and is gone after that."""

    @override
    async def request(self, *_: Any, **__: Any) -> Msg:
        self.is_connected = False
        raise nats.errors.TimeoutError


async def test_what_was_sent_before_the_connection_broke_may_be_stored() -> None:
    publisher = Publisher(_Breaks().client, give_up_after=0.5)
    with pytest.raises(OutcomeUnknownError, match=r"not connected .* may be stored"):
        await publisher.publish("x", b"1", {})


@pytest.mark.parametrize(
    ("before", "attempts"),
    [
        ([], 1),
        ([b'{"error":{"code":503,"err_code":10008}}'], 1),
        ([b'{"error":{"code":409,"err_code":10158}}'], 1),
        ([TimeoutError()], 2),
    ],
)
async def test_a_duplicate_is_our_own_only_after_a_publish_that_may_have_been_stored(
    before: list[bytes | Exception], attempts: int
) -> None:
    server = FakeJetStream(answers=[*before, DUPLICATE])
    ack = await Publisher(server.client).publish("x", b"1", {MESSAGE_ID_HEADER: "m"})
    assert (ack.duplicate, ack.attempts) == (True, attempts)


async def test_what_is_waited_for_is_said_once_for_all_who_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost: list[bytes | Exception] = [nats.errors.TimeoutError()] * 3
    server = FakeJetStream(answers=[*lost, STORED, STORED])
    publisher = Publisher(server.client)
    await asyncio.gather(publisher.publish("x", b"1", {}), publisher.publish("y", b"2", {}))
    [record] = caplog.records
    told = (record.levelname, record.message, vars(record)["give_up_after"])
    assert told == ("WARNING", "a publish failed and is tried again", 30)
    assert vars(record)["reason"].startswith("the publish to x was not acknowledged")


async def test_a_publish_that_is_not_repeated_does_not_say_that_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError()])
    with pytest.raises(ServerUnavailableError):
        await Publisher(server.client).publish("x", b"1", {}, retry=False)
    assert caplog.records == []


async def test_a_client_that_is_closed_for_good_is_not_waited_for() -> None:
    server = FakeJetStream(is_connected=False, is_closed=True)
    with pytest.raises(ServerUnavailableError, match="not connected"):
        await Publisher(server.client).publish("x", b"1", {})


# --- many at once -------------------------------------------------------------------------


@dataclass
class _Slow(FakeJetStream):
    """Acknowledges when told to."""

    under_way: list[str] = field(default_factory=list[str])
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    answering: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    @override
    async def asked(self, subject: str, payload: bytes, reply: str, headers: Any) -> None:
        self.under_way.append(subject)
        self.changed.set()
        self.answering.append(asyncio.create_task(self._answer_later(reply)))

    async def _answer_later(self, reply: str) -> None:
        await self.turn.acquire()
        self.deliver(reply, message(reply, STORED))


async def test_publishes_beyond_the_limit_wait_their_turn_in_order() -> None:
    server = _Slow()
    publisher = Publisher(server.client, max_in_flight=2)
    async with asyncio.TaskGroup() as tasks:
        for subject in "abcde":
            tasks.create_task(publisher.publish(subject, b"", {}))
        for expected in ("ab", "abc", "abcd", "abcde"):
            while "".join(server.under_way) != expected:
                server.changed.clear()
                await server.changed.wait()
            server.turn.release()
        server.turn.release()


async def test_a_publish_that_gets_no_turn_was_not_sent() -> None:
    server = _Slow()
    publisher = Publisher(server.client, max_in_flight=1, give_up_after=0.01)
    first = asyncio.create_task(publisher.publish("a", b"", {}))
    await server.changed.wait()
    with pytest.raises(ServerUnavailableError, match="was not sent"):
        await publisher.publish("b", b"", {})
    assert server.under_way == ["a"]
    server.turn.release()
    await first


async def test_a_publish_that_is_cancelled_gives_its_turn_away() -> None:
    server = _Slow()
    publisher = Publisher(server.client, max_in_flight=1)
    first = asyncio.create_task(publisher.publish("a", b"", {}))
    await server.changed.wait()
    first.cancel()
    second = asyncio.create_task(publisher.publish("b", b"", {}))
    server.turn.release()  # the first one's, which nobody awaits any more
    server.turn.release()
    assert (await second).sequence == 7


async def test_an_acknowledgement_is_not_waited_for_once_the_connection_is_lost() -> None:
    server = _Slow()
    publisher = Publisher(server.client)
    publishing = asyncio.create_task(publisher.publish("a", b"", {MESSAGE_ID_HEADER: "m"}))
    await server.changed.wait()
    publisher.connection_lost()
    publisher.connection_lost()
    while server.under_way != ["a", "a"]:
        server.changed.clear()
        await server.changed.wait()
    server.turn.release()  # the first answer, too late
    server.turn.release()
    assert (await publishing).attempts == 2
