import asyncio
import base64
import logging
from collections.abc import Sequence

import nats.errors
import orjson
import pytest

from dialback.outcomes import Outcome
from dialback.queue.note import Note, Stored
from dialback.queue.notes import LateNotes, Notes
from dialback.queue.publisher import Publisher
from support.fake_jetstream import FakeJetStream

KEY = "JOBS.7-99"
SUBJECT = "$KV.dialback_notes.JOBS.7-99"
GET = "$JS.API.STREAM.MSG.GET.KV_dialback_notes"
INFO = "$JS.API.STREAM.INFO.KV_dialback_notes"
NO_MESSAGE = b'{"error":{"code":404,"err_code":10037,"description":"no message found"}}'
NO_STREAM = b'{"error":{"code":404,"err_code":10059,"description":"stream not found"}}'
CONFLICT = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence"}}'
BUCKET = b'{"config":{},"state":{}}'
ACK = b'{"stream":"KV_dialback_notes","seq":4}'
NO_STREAMS = b'{"total":0,"streams":[]}'


def stored(note: Note, revision: int) -> bytes:
    data = base64.b64encode(note.encode()).decode()
    message = {"subject": SUBJECT, "seq": revision, "time": "2026-01-01T00:00:00Z", "data": data}
    return orjson.dumps({"message": message})


def handed_back(*numbers: int) -> Note:
    return Note(handed_back=frozenset(numbers))


def notes_of(server: FakeJetStream, budget: float = 30.0) -> Notes:
    return Notes(server.client, Publisher(server.client), restore=_unused, budget=budget)


async def _unused() -> None:
    raise AssertionError("the bucket is there")


def written(server: FakeJetStream) -> list[tuple[str, Note]]:
    """Expected revision and note of each write."""
    return [
        (headers["Nats-Expected-Last-Subject-Sequence"], Note.decode(payload))
        for subject, payload, headers in server.requests
        if subject == SUBJECT and headers is not None
    ]


def asked(server: FakeJetStream) -> list[str]:
    return [subject for subject, _, _ in server.requests]


async def test_a_note_is_read_from_the_leader() -> None:
    server = FakeJetStream(answers=[stored(handed_back(1), 4)])
    assert await notes_of(server).read(KEY) == Stored(handed_back(1), 4)
    assert [(s, orjson.loads(p)) for s, p, _ in server.requests] == [
        (GET, {"last_by_subj": SUBJECT})
    ]


async def test_no_note_in_a_bucket_that_is_there_is_an_empty_note() -> None:
    server = FakeJetStream(answers=[NO_MESSAGE, BUCKET])
    assert await notes_of(server).read(KEY) == Stored(Note(), 0)
    assert asked(server) == [GET, INFO]


async def test_a_missing_bucket_is_restored_and_then_says_that_there_is_no_note() -> None:
    server = FakeJetStream(answers=[NO_STREAM, NO_STREAM, NO_MESSAGE, BUCKET])
    restored: list[bool] = []

    async def restore() -> None:
        restored.append(True)

    notes = Notes(server.client, Publisher(server.client), restore=restore)
    assert await notes.read(KEY) == Stored(Note(), 0)
    assert restored == [True]


@pytest.mark.parametrize(
    "answers",
    [[nats.errors.TimeoutError()], [nats.errors.NoRespondersError()], [NO_STREAM, NO_STREAM]],
)
async def test_a_note_that_cannot_be_read_is_unknown_and_that_is_one_warning(
    answers: Sequence[bytes | Exception], caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeJetStream(answers=list(answers))
    notes = Notes(server.client, Publisher(server.client), budget=0.0)
    assert await notes.read(KEY) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("a note could not be read")


async def test_reading_is_tried_again_within_its_budget() -> None:
    server = FakeJetStream(answers=[nats.errors.TimeoutError(), stored(handed_back(1), 4)])
    assert await notes_of(server).read(KEY) == Stored(handed_back(1), 4)


async def test_the_first_note_is_one_request() -> None:
    server = FakeJetStream(answers=[ACK])
    assert await notes_of(server).write(KEY, handed_back(1))
    assert written(server) == [("0", handed_back(1))]
    assert len(server.requests) == 1


async def test_a_note_that_was_read_is_added_to_without_reading_it_again() -> None:
    server = FakeJetStream(answers=[ACK])
    assert await notes_of(server).write(KEY, handed_back(2), base=Stored(handed_back(1), 4))
    assert written(server) == [("4", handed_back(1, 2))]


async def test_of_two_writers_neither_loses_its_number() -> None:
    server = FakeJetStream(answers=[CONFLICT, stored(handed_back(1), 3), ACK])
    assert await notes_of(server).write(KEY, handed_back(2))
    assert written(server) == [("0", handed_back(2)), ("3", handed_back(1, 2))]


async def test_a_write_that_was_stored_without_an_answer_is_not_repeated() -> None:
    answers: list[bytes | Exception] = [nats.errors.TimeoutError(), CONFLICT]
    server = FakeJetStream(answers=[*answers, stored(handed_back(1), 4)])
    assert await notes_of(server).write(KEY, handed_back(1))
    assert [revision for revision, _ in written(server)] == ["0", "0"]


async def test_what_keeps_changing_is_given_up_after_some_rounds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = FakeJetStream(answers=[CONFLICT, stored(handed_back(1), 3)] * 5)
    assert not await notes_of(server, budget=0.0).write(KEY, handed_back(2))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_missing_bucket_is_restored_before_the_note_is_written_again() -> None:
    server = FakeJetStream(answers=[nats.errors.NoRespondersError(), NO_STREAMS, ACK])
    restored: list[bool] = []

    async def restore() -> None:
        restored.append(True)

    notes = Notes(server.client, Publisher(server.client), restore=restore)
    assert await notes.write(KEY, handed_back(1))
    assert restored == [True]


async def test_a_write_waits_for_the_connection() -> None:
    server = FakeJetStream(answers=[ACK], is_connected=False)
    writing = asyncio.create_task(notes_of(server).write(KEY, handed_back(1)))
    await asyncio.sleep(0)
    assert server.requests == []
    server.is_connected = True
    assert await writing


async def test_it_does_not_wait_once_the_note_has_become_useless() -> None:
    server = FakeJetStream(is_connected=False)
    assert not await notes_of(server).write(KEY, handed_back(1), lost=lambda: True)
    assert server.requests == []


async def test_it_does_not_wait_for_a_connection_that_is_closed_for_good() -> None:
    server = FakeJetStream(is_connected=False, is_closed=True)
    assert not await notes_of(server).write(KEY, handed_back(1))


async def test_a_late_note_is_written_in_the_background() -> None:
    server = FakeJetStream(answers=[ACK])
    late = LateNotes(notes_of(server))
    late.start(KEY, Note(finished=Outcome.COMPLETED))
    await late.close(within=1000.0)
    assert written(server) == [("0", Note(finished=Outcome.COMPLETED))]


async def test_the_end_of_a_worker_does_not_wait_for_a_note_that_cannot_be_written() -> None:
    server = FakeJetStream(is_connected=False)
    late = LateNotes(notes_of(server))
    late.start(KEY, handed_back(1))
    await late.close(within=0.0)
    late.start(KEY, handed_back(2))  # too late for that too
    await late.close(within=1000.0)
    assert server.requests == []
