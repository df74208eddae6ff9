import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import nats.errors
import orjson
import pytest
from typing_extensions import override

from dialback.errors import NotFoundError, ServerUnavailableError
from dialback.queue.delivery import (
    ACK,
    NAK,
    TERM,
    DeliveryInfo,
    LeaseExpiredError,
    Settler,
    nak_body,
    parse_ack_subject,
)
from dialback.queue.replies import Replies
from support.fake_jetstream import FakeJetStream, message

V1 = "$JS.ACK.JOBS_a_C_b_E_c.high.3.17.21.1700000000123456789.5"
V2 = "$JS.ACK.hub.Ab12Cd34.JOBS_a_C_b_E_c.high.3.17.21.1700000000123456789.5.rAnD"
INFO = DeliveryInfo(
    stream="JOBS_a_C_b_E_c",
    consumer="high",
    number=3,
    sequence=17,
    consumer_sequence=21,
    published_ns=1_700_000_000_123_456_789,
    pending=5,
)
REPLY = message(reply=V1)


@pytest.mark.parametrize("reply", [V1, V2, V2.removesuffix(".rAnD"), V2 + ".new.tokens"])
def test_both_forms_of_the_reply_subject_say_the_same(reply: str) -> None:
    assert parse_ack_subject(reply) == INFO


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "_INBOX.worker.abc.1",
        "$JS.ACK",
        V1.rpartition(".")[0],
        V1 + ".9",
        V1.replace("ACK", "FC"),
        V1.replace(".3.", ".three."),
        V2.replace("$JS", "JS"),
        V1.replace(".17.", ".."),
    ],
)
def test_anything_else_is_no_delivery(reply: str) -> None:
    assert parse_ack_subject(reply) is None


@pytest.mark.parametrize(
    ("delay", "body"),
    [
        (0.0, b"-NAK"),
        (-1.0, b"-NAK"),
        (0.25, b'-NAK {"delay":250000000}'),
        (900.0, b'-NAK {"delay":900000000000}'),
    ],
)
def test_a_nak_carries_its_delay_in_nanoseconds(delay: float, body: bytes) -> None:
    assert nak_body(delay) == body


async def test_an_answer_is_asked_again_until_it_is_confirmed() -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError(), FOUND])
    server.answers += [nats.errors.NoRespondersError(), b""]
    await Settler(server.client).confirm(REPLY, ACK)
    asked = [request for request in server.requests if request[0] == V1]
    assert asked == [(V1, b"+ACK", None)] * 3


@pytest.mark.parametrize("body", [NAK, nak_body(5)])
async def test_a_nak_that_may_have_been_applied_is_not_repeated(body: bytes) -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError(), FOUND])
    with pytest.raises(ServerUnavailableError, match=r"-NAK.* not confirmed"):
        await Settler(server.client).confirm(REPLY, body)
    assert [subject for subject, _, _ in server.requests] == [V1, INFO_SUBJECT]


async def test_a_nak_that_nobody_took_is_repeated() -> None:
    server = FakeJetStream(answers=[nats.errors.NoRespondersError(), b""])
    await Settler(server.client).confirm(REPLY, NAK)
    assert [subject for subject, _, _ in server.requests] == [V1, V1]


async def test_a_nak_waits_for_the_connection() -> None:
    server = FakeJetStream(is_connected=False, answers=[b""])
    confirming = asyncio.create_task(Settler(server.client).confirm(REPLY, NAK))
    await asyncio.sleep(0)
    assert server.requests == []
    server.is_connected = True
    await confirming
    assert [subject for subject, _, _ in server.requests] == [V1]


async def test_it_gives_up_with_an_error_that_says_so() -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError()] * 2)
    with pytest.raises(ServerUnavailableError, match=r"\+TERM not confirmed"):
        await Settler(server.client, give_up_after=0).confirm(REPLY, TERM)


async def test_nothing_is_sent_while_disconnected() -> None:
    server = FakeJetStream(is_connected=False)
    with pytest.raises(ServerUnavailableError, match="not connected"):
        await Settler(server.client, give_up_after=0).confirm(REPLY, ACK)
    assert server.requests == []


@pytest.mark.parametrize("body", [ACK, NAK, TERM])
async def test_no_answer_is_sent_once_the_lease_is_lost(body: bytes) -> None:
    server = FakeJetStream()
    with pytest.raises(LeaseExpiredError, match="within the lease"):
        await Settler(server.client).confirm(REPLY, body, lost=lambda: True)
    assert server.requests == []


@pytest.mark.parametrize("body", [ACK, TERM])
async def test_an_answer_is_not_repeated_once_the_lease_is_lost(body: bytes) -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError(), FOUND])
    with pytest.raises(LeaseExpiredError):
        await Settler(server.client).confirm(REPLY, body, lost=lambda: bool(server.requests))
    assert [subject for subject, _, _ in server.requests] == [V1, INFO_SUBJECT]


async def test_a_nak_that_nobody_took_is_not_repeated_once_the_lease_is_lost() -> None:
    server = FakeJetStream(answers=[nats.errors.NoRespondersError()])
    with pytest.raises(LeaseExpiredError):
        await Settler(server.client).confirm(REPLY, NAK, lost=lambda: bool(server.requests))
    assert [subject for subject, _, _ in server.requests] == [V1]


NOT_FOUND = b'{"error":{"code":404,"err_code":10014,"description":"consumer not found"}}'
FOUND = b'{"config":{},"num_pending":0,"delivered":{"stream_seq":17}}'
FORGOTTEN = b'{"config":{},"num_pending":1,"delivered":{"stream_seq":16}}'
NO_MESSAGE = b'{"error":{"code":404,"err_code":10037,"description":"no message found"}}'
DELETE_SUBJECT = "$JS.API.STREAM.MSG.DELETE.JOBS_a_C_b_E_c"
INFO_SUBJECT = "$JS.API.CONSUMER.INFO.JOBS_a_C_b_E_c.high"


async def test_an_answer_that_nobody_takes_ends_once_the_consumer_is_proven_gone() -> None:
    server = FakeJetStream(answers=[nats.errors.NoRespondersError(), NOT_FOUND])
    with pytest.raises(NotFoundError, match="consumer high of stream JOBS_a_C_b_E_c was deleted"):
        await Settler(server.client, prove_after=0).confirm(REPLY, ACK)
    assert [subject for subject, _, _ in server.requests] == [V1, INFO_SUBJECT]


@pytest.mark.parametrize("body", [ACK, TERM + b" invalid"])
@pytest.mark.parametrize("deleted", [b'{"success":true}', NO_MESSAGE])
async def test_a_delivery_that_the_server_forgot_is_settled_by_deleting_the_message(
    body: bytes, deleted: bytes
) -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError(), FORGOTTEN, deleted])
    await Settler(server.client).confirm(REPLY, body)
    assert [subject for subject, _, _ in server.requests] == [V1, INFO_SUBJECT, DELETE_SUBJECT]
    assert orjson.loads(server.requests[-1][1])["seq"] == 17


async def test_a_delivery_that_the_server_forgot_needs_no_nak() -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError(), FORGOTTEN])
    await Settler(server.client).confirm(REPLY, nak_body(5))
    assert [subject for subject, _, _ in server.requests] == [V1, INFO_SUBJECT]


@pytest.mark.parametrize("answer", [FOUND, nats.errors.TimeoutError()])
async def test_without_that_proof_it_is_asked_again(answer: bytes | Exception) -> None:
    server = FakeJetStream(answers=[nats.errors.NoRespondersError(), answer, b""])
    await Settler(server.client, prove_after=0).confirm(REPLY, ACK)
    assert [subject for subject, _, _ in server.requests] == [V1, INFO_SUBJECT, V1]


async def test_a_moment_without_a_taker_asks_for_no_proof() -> None:
    server = FakeJetStream(answers=[nats.errors.NoRespondersError(), b""])
    await Settler(server.client).confirm(REPLY, ACK)
    assert [subject for subject, _, _ in server.requests] == [V1, V1]


@dataclass
class Twice:
    """A work whose message is delivered again."""

    reply: str = V1


async def test_a_repetition_is_answered_by_the_next_attempt() -> None:
    again, work = V1.replace(".3.17.", ".4.17."), Twice()

    def lost() -> bool:
        work.reply = again if server.requests else V1
        return False

    server = FakeJetStream(answers=[nats.errors.NoRespondersError(), b""])
    await Settler(server.client).confirm(work, ACK, lost=lost)
    assert [subject for subject, _, _ in server.requests] == [V1, again]


async def test_the_first_answer_is_short_until_the_server_knows_the_delivery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeouts: list[float] = []

    class Recording(Replies):
        @override
        async def ask(
            self,
            subject: str,
            payload: bytes,
            *,
            timeout: float,
            headers: Mapping[str, str] | None = None,
        ) -> bytes:
            timeouts.append(timeout)
            return await super().ask(subject, payload, timeout=timeout, headers=headers)

    monkeypatch.setattr("dialback.queue.delivery.Replies", Recording)
    server = FakeJetStream(is_connected=False)
    server.answers = [nats.errors.TimeoutError(), nats.errors.TimeoutError()]
    server.answers += [nats.errors.TimeoutError(), FOUND, b""]
    confirming = asyncio.create_task(Settler(server.client).confirm(REPLY, ACK))
    await asyncio.sleep(0)
    server.is_connected = True
    await confirming
    assert timeouts == [1.0, 1.0, 5.0]
