import base64

import orjson
import pytest

from dialback.errors import QueueFullError
from dialback.outcomes import Delivery, Finished, Outcome
from dialback.queue.api import JetStreamApi, WrongLastSequenceError
from dialback.queue.dead_letter import (
    DeadLetterRecord,
    DeadLetters,
    header_text,
    history_of,
    subject_token,
    with_history,
)
from dialback.queue.publisher import Publisher
from dialback.queue.topology import Endpoint
from support.fake_jetstream import FakeJetStream

ENDPOINT = Endpoint("a", "b", "c")
DELIVERY = Delivery(
    payload=b"payload",
    headers={"Dialback-Deadline": "5", "Nats-Msg-Id": "m", "nats-expected-stream": "S", "b@d": "1"},
    subject="dialback.a.b.c.jobs.high.r1",
    stream="JOBS",
    sequence=4,
    number=2,
    published_ns=99,
)
ENDING = Finished(outcome=Outcome.INVALID, request_id="r1", reason="no JSON")
RECORD = DeadLetterRecord.of(ENDING, DELIVERY, "pod-1")
WRONG_SEQUENCE = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}'
STORED = b'{"stream":"DEAD","seq":1}'


@pytest.mark.parametrize("request_id", ["a", "A-b_9", "x" * 128])
def test_an_id_that_can_be_a_subject_token_is_one(request_id: str) -> None:
    assert subject_token(request_id) == request_id


@pytest.mark.parametrize("request_id", ["", "a.b", "a b", "é", "*", "x" * 129, "a\n"])
def test_any_other_id_is_hashed(request_id: str) -> None:
    token = subject_token(request_id)
    assert token.startswith("h-")
    assert subject_token(token) == token


def test_hashed_ids_stay_apart() -> None:
    assert subject_token("a.b") != subject_token("a.c")


@pytest.mark.parametrize(
    ("text", "safe"),
    [("plain: text", "plain: text"), ("two\r\nlines\t", "two??lines?"), ("é☃\x7f", "???")],
)
def test_header_text_is_one_line_of_printable_ascii(text: str, safe: str) -> None:
    assert header_text(text) == safe


def test_a_letter_has_the_original_headers_and_ours() -> None:
    assert RECORD.headers() == {
        "Dialback-Deadline": "5",
        "Dialback-Outcome": "invalid",
        "Dialback-Reason": "no JSON",
        "Dialback-Request-Id": "r1",
        "Dialback-Origin": "JOBS:4:99",
        "Dialback-Origin-Subject": "dialback.a.b.c.jobs.high.r1",
        "Dialback-Deliveries": "2",
        "Dialback-Worker": "pod-1",
    }


def test_reason_and_id_are_bounded() -> None:
    ending = Finished(outcome=Outcome.INVALID, request_id="i" * 5000, reason="r" * 5000)
    headers = DeadLetterRecord.of(ending, DELIVERY, "pod-1").headers()
    assert len(headers["Dialback-Reason"]) == len(headers["Dialback-Request-Id"]) == 1024


def test_a_requeued_letter_folds_its_headers_into_the_history() -> None:
    once = with_history(RECORD.headers())
    assert once.keys() == {"Dialback-Deadline", "Dialback-History"}
    assert history_of(once) == [
        {"outcome": "invalid", "reason": "no JSON", "worker": "pod-1", "deliveries": 2}
    ]
    second = DeadLetterRecord.of(ENDING, Delivery(payload=b"", headers=once), "pod-2")
    twice = with_history(second.headers())
    assert [entry["worker"] for entry in history_of(twice)] == ["pod-1", "pod-2"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no JSON"])
def test_a_history_that_cannot_be_read_is_empty(text: str) -> None:
    assert history_of({"Dialback-History": text}) == []


def letters(server: FakeJetStream) -> DeadLetters:
    return DeadLetters(JetStreamApi(server.client), Publisher(server.client), ENDPOINT)


def stored_letter(sequence: int, origin: str) -> bytes:
    block = base64.b64encode(f"NATS/1.0\r\nDialback-Origin: {origin}\r\n\r\n".encode()).decode()
    return orjson.dumps({"message": {"subject": "", "seq": sequence, "time": "", "hdrs": block}})


def expected_sequences(server: FakeJetStream) -> list[str]:
    published = [headers for _, _, headers in server.requests if headers]
    return [headers["Nats-Expected-Last-Subject-Sequence"] for headers in published]


async def test_the_first_letter_of_a_request_expects_none_before() -> None:
    server = FakeJetStream(answers=[STORED])
    await letters(server).write(RECORD)
    assert expected_sequences(server) == ["0"]
    assert server.requests[0][:2] == ("dialback.a.b.c.dead.r1", b"payload")


async def test_the_same_origin_is_done_already() -> None:
    server = FakeJetStream(answers=[WRONG_SEQUENCE, stored_letter(3, "JOBS:4:99")])
    await letters(server).write(RECORD)
    assert expected_sequences(server) == ["0"]


async def test_another_origin_is_followed_by_a_new_letter() -> None:
    server = FakeJetStream(answers=[WRONG_SEQUENCE, stored_letter(3, "JOBS:2:50"), STORED])
    await letters(server).write(RECORD)
    assert expected_sequences(server) == ["0", "3"]


async def test_a_letter_that_vanished_meanwhile_is_written_again() -> None:
    gone = b'{"error":{"code":404,"err_code":10037}}'
    server = FakeJetStream(answers=[WRONG_SEQUENCE, gone, STORED])
    await letters(server).write(RECORD)
    assert expected_sequences(server) == ["0", "0"]


async def test_a_subject_that_keeps_changing_is_given_up() -> None:
    answers: list[bytes | Exception] = []
    for sequence in range(5):
        answers += [WRONG_SEQUENCE, stored_letter(sequence, "other")]
    with pytest.raises(WrongLastSequenceError, match="keeps changing"):
        await letters(FakeJetStream(answers=answers)).write(RECORD)


async def test_what_cannot_be_stored_is_raised() -> None:
    full = FakeJetStream(answers=[b'{"error":{"code":503,"err_code":10077}}'])
    with pytest.raises(QueueFullError):
        await letters(full).write(RECORD)
