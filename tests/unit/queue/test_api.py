import base64
from typing import Any

import nats.errors
import orjson
import pytest

from dialback.errors import (
    NotFoundError,
    PermissionDeniedError,
    QueueError,
    QueueFullError,
    ServerUnavailableError,
    StreamMissingError,
)
from dialback.queue.api import (
    JetStreamApi,
    StoredMessage,
    WrongLastSequenceError,
    api_error,
    parse_headers,
    stream_missing,
)
from support.fake_jetstream import FakeJetStream


@pytest.mark.parametrize(
    ("code", "err_code", "kind"),
    [
        (404, 10059, NotFoundError),
        (404, 10014, NotFoundError),
        (404, 10037, NotFoundError),
        (400, 10071, WrongLastSequenceError),
        (400, 10164, WrongLastSequenceError),
        (503, 10077, QueueFullError),
        (503, 10023, QueueFullError),
        (500, 10047, QueueFullError),
        (429, 10167, QueueFullError),
        (400, 10002, QueueFullError),
        (500, 10028, QueueFullError),
        (503, 10008, ServerUnavailableError),
        (503, 10009, ServerUnavailableError),
        (503, 10004, ServerUnavailableError),
        (500, 10007, ServerUnavailableError),
        (500, 10041, ServerUnavailableError),
        (503, 10076, ServerUnavailableError),
        (500, 10118, ServerUnavailableError),
        (500, 10119, ServerUnavailableError),
        (409, 10158, ServerUnavailableError),
        (403, 1, PermissionDeniedError),
        (404, 1, NotFoundError),
        (400, 1, QueueError),
        (503, 10039, QueueError),
    ],
)
def test_an_error_is_told_by_its_number(code: int, err_code: int, kind: type[QueueError]) -> None:
    error = api_error({"code": code, "err_code": err_code, "description": "what"}, "VERB")
    assert type(error) is kind
    assert str(error).startswith(f"what (VERB, error {err_code})")


@pytest.mark.parametrize(
    ("err_code", "advice"),
    [
        (10077, "max_msgs, max_bytes or max_msgs_per_subject"),
        (10167, "max_buffered_msgs"),
        (10023, "no room"),
        (10002, "account"),
        (10028, "max_mem"),
        (10047, "max_file"),
        (10039, "switch JetStream on for this NATS account"),
        (10076, "this nats-server runs without JetStream (-js)"),
    ],
)
def test_an_error_says_what_to_do(err_code: int, advice: str) -> None:
    assert advice in str(api_error({"code": 503, "err_code": err_code}, "VERB"))


def test_a_store_that_is_closing_is_not_full() -> None:
    error = {"code": 503, "err_code": 10077, "description": "store is closed"}
    assert type(api_error(error, "VERB")) is ServerUnavailableError


def test_an_error_without_numbers_is_an_error_all_the_same() -> None:
    assert type(api_error({}, "VERB")) is QueueError


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (nats.errors.NoRespondersError(), "start nats-server with -js"),
        (nats.errors.TimeoutError(), "no answer to INFO in 5 s"),
        (TimeoutError(), "no permission for it"),
        (nats.errors.ConnectionClosedError(), "NATS: "),
    ],
)
async def test_no_answer_is_an_unavailable_server(failure: Exception, words: str) -> None:
    api = JetStreamApi(FakeJetStream(answers=[failure]).client)
    with pytest.raises(ServerUnavailableError, match=words):
        await api.request("INFO")


async def test_an_error_answer_is_raised() -> None:
    answer = orjson.dumps({"error": {"code": 404, "err_code": 10059, "description": "gone"}})
    with pytest.raises(NotFoundError, match=r"gone \(STREAM.INFO.S, error 10059\)"):
        await JetStreamApi(FakeJetStream(answers=[answer]).client).stream_info("S")


async def test_stream_names_are_read_page_by_page() -> None:
    pages: list[dict[str, Any]] = [
        {"total": 3, "streams": ["a", "b"]},
        {"total": 3, "streams": ["c"]},
    ]
    server = FakeJetStream(answers=[orjson.dumps(page) for page in pages])
    assert await JetStreamApi(server.client).stream_names() == ["a", "b", "c"]
    assert [orjson.loads(payload) for _, payload, _ in server.requests] == [
        {"offset": 0},
        {"offset": 2},
    ]


async def test_the_streams_of_a_subject_are_asked_for() -> None:
    server = FakeJetStream(answers=[b'{"total":1,"streams":["a"]}'])
    assert await JetStreamApi(server.client).stream_names(subject="x.y") == ["a"]
    assert orjson.loads(server.requests[0][1]) == {"offset": 0, "subject": "x.y"}


async def test_a_server_without_streams_has_no_names() -> None:
    server = FakeJetStream(answers=[b'{"total":0,"streams":null}'])
    assert await JetStreamApi(server.client).stream_names() == []


async def test_a_list_of_names_that_shrinks_while_it_is_read_ends() -> None:
    server = FakeJetStream(answers=[b'{"total":3,"streams":["a"]}', b'{"total":3,"streams":[]}'])
    assert await JetStreamApi(server.client).stream_names() == ["a"]


async def test_a_stored_message_is_decoded() -> None:
    stored = {
        "subject": "s",
        "seq": 4,
        "time": "2025-01-01T00:00:00Z",
        "hdrs": base64.b64encode(b"NATS/1.0\r\nA: 1\r\n\r\n").decode(),
        "data": base64.b64encode(b"body").decode(),
    }
    bare = {"subject": "s", "seq": 5, "time": ""}
    server = FakeJetStream(answers=[orjson.dumps({"message": m}) for m in (stored, bare)])
    api = JetStreamApi(server.client)
    assert await api.get_exact("S", 4) == StoredMessage(
        subject="s", sequence=4, time="2025-01-01T00:00:00Z", headers={"A": "1"}, payload=b"body"
    )
    assert await api.get_message("S") == StoredMessage(
        subject="s", sequence=5, time="", headers={}, payload=b""
    )


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"", {}),
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\nA:1\r\nB: 2 : 3 \r\nA: 4\r\nnonsense\r\n\r\n", {"A": "4", "B": "2 : 3"}),
        (b"NATS/1.0\r\nA: \xff\r\n\r\n", {"A": "\ufffd"}),
    ],
)
def test_header_blocks(block: bytes, headers: dict[str, str]) -> None:
    assert parse_headers(block) == headers


def test_a_missing_stream_says_how_to_get_one() -> None:
    error = stream_missing("a.b.c")
    assert isinstance(error, StreamMissingError)
    assert "dialback worker run ENGINE --endpoint a.b.c" in str(error)
