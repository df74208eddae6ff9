import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from dialback.errors import ConfigError
from dialback.request import Request, resumption

_ORDINARY: dict[str, Any] = {
    "endpoint": "a.b.c",
    "value": {"n": 1},
    "timeout": 60.0,
    "deadline": 600.0,
    "lane": "normal",
    "codec": "json",
    "request_id": None,
    "metadata": None,
    "headers": None,
    "context": None,
}


def _prepare(**arguments: Any) -> Request:
    return Request.prepare(**(_ORDINARY | arguments))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"endpoint": 5}, "endpoint 5 is no text"),
        ({"endpoint": ["a.b.c"]}, r"endpoint \['a.b.c'\] is no text"),
        ({"timeout": None}, "timeout None is no number of seconds"),
        ({"timeout": "5"}, "timeout '5' is no number of seconds"),
        ({"timeout": 1e300}, r"timeout 1e\+300 is no number of seconds above 0, up to 1e\+09"),
        ({"deadline": float("inf")}, "deadline inf is no number of seconds"),
        ({"deadline": 10**400}, "deadline 1000.* is no number of seconds"),
        ({"lane": None}, "lane None is none of high, normal, low"),
        ({"codec": []}, r"codec \[\] is none of json, msgpack"),
        ({"request_id": 5}, "request_id 5 is no text"),
        ({"request_id": b"x"}, "request_id b'x' is no text"),
        ({"request_id": "\ud800"}, "request_id .* is no text"),
        ({"metadata": ["a"]}, r"metadata \['a'\] is no map of strings"),
        ({"metadata": "ab"}, "metadata 'ab' is no map of strings"),
        ({"metadata": {5: "a"}}, "metadata is a map of strings; 5 is not"),
        ({"headers": {"x": 5}}, "headers is a map of strings; 'x' is not"),
        ({"headers": ["a"]}, r"headers \['a'\] is no map of strings"),
        ({"headers": {"": "a"}}, "headers: '' cannot be the name of one"),
        ({"headers": {"é": "a"}}, "headers: 'é' cannot be the name of one"),
        ({"headers": {"a b": "a"}}, "headers: 'a b' cannot be the name of one"),
        ({"context": 5}, "context 5 is no Context"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_which(
    arguments: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        _prepare(**arguments)


@pytest.mark.parametrize(
    ("timeout", "keep_history", "says"),
    [
        (None, False, "resume_timeout None is no number of seconds"),
        (0, False, "resume_timeout 0 is no number of seconds"),
        (60.0, "yes", "keep_history 'yes' is no bool or number of bytes"),
        (60.0, 1.5, "keep_history 1.5 is no bool or number of bytes"),
        (60.0, -1, "keep_history -1 is not within 0 and"),
    ],
)
def test_a_wrong_way_to_go_on_is_an_error_that_says_why(
    timeout: Any, keep_history: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        resumption(True, timeout, keep_history)


def test_numbers_of_any_kind_are_seconds() -> None:
    request = _prepare(timeout=5, deadline=1e9)
    assert (request.timeout, request.deadline) == (5.0, 1e9)


def test_only_an_id_that_was_made_for_the_request_is_new() -> None:
    assert not _prepare(request_id=str(uuid.uuid4())).id_is_new
    one, other = _prepare(), _prepare(request_id="")
    assert one.id_is_new
    assert other.id_is_new
    assert one.request_id != other.request_id


def test_headers_are_sent_along_but_not_in_place_of_ours() -> None:
    headers = _prepare(headers={"traceparent": "a", "Nats-Msg-Id": "b"}, request_id="c").headers()
    assert (headers["traceparent"], headers["Nats-Msg-Id"]) == ("a", "c")
