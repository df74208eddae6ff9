import pytest

from dialback.errors import ConfigError
from dialback.server_urls import check_server_urls, without_user_info


@pytest.mark.parametrize(
    "text",
    [
        "nats://127.0.0.1:4222",
        "tls://me:secret@nats.example.org",
        "wss://nats.example.org",
        "nats://[::1]:4222",
        "localhost",
        "127.0.0.1:4222",
        "nats://a:1, tls://b:2,",
        "ws://a:1,wss://b:2",
    ],
)
def test_what_nats_py_takes_is_taken(text: str) -> None:
    check_server_urls(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is no URL in it; write nats://HOST:PORT"),
        (" , ", "there is no URL in it"),
        ("http://here:4222", "the scheme is none of nats, tls, ws, wss"),
        ("NATS://here:4222", "the scheme is none of"),  # nats-py does not know it either
        ("nats://here:99999", "write nats://HOST:PORT, with a port from 1 to 65535"),
        ("tls://here:0", "write tls://HOST:PORT"),
        ("nats://here:port", "write nats://HOST:PORT"),
        ("garbage::", "write nats://HOST:PORT"),
        ("::1", "write nats://HOST:PORT"),
        ("nats://[::1", "write nats://HOST:PORT"),
        ("nats://:4222", "write nats://HOST:PORT"),
        ("nats://two words:4222", "write nats://HOST:PORT"),
        ("nats://a:1,nats://b:0", "URL 2: write nats://HOST:PORT"),
        ("nats://a:1,http://b:1", "URL 2: the scheme is none of"),
        ("nats://a:1,ws://b:1", "cannot stand beside"),
    ],
)
def test_what_nats_py_cannot_connect_to_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_server_urls(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://here:1", "nats://here:1"),
        ("nats://me:secret@here:1", "…@here:1"),
        ("me:secret@here", "…@here"),
        ("nats://me:sec,ret@here:1", "…@here:1"),
        ("nats://me:secret@a:1,nats://me:secret@b:2", "…@b:2"),
    ],
)
def test_users_and_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_user_info(text) == shown
