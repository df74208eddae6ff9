"""The URLs of the nats-servers: whether they can be one. No I/O.

Checked when settings are read: for nats-py a wrong URL is a server that does not answer, and
whatever supervises the program would try again for ever.
"""

from typing import Final
from urllib.parse import urlsplit

from dialback.errors import ConfigError

_PLAIN: Final = ("nats", "tls")
_WEBSOCKET: Final = ("ws", "wss")


def check_server_urls(text: str) -> None:
    """Refuse URLs that nats-py cannot connect to; one without a scheme means ``nats://``.

    Args:
        text: One URL, or several separated by commas.

    Raises:
        ConfigError: With a sentence that repeats nothing of the URL: it may hold a password.
    """
    urls = [part.strip() for part in text.split(",") if part.strip()]
    if not urls:
        raise ConfigError("there is no URL in it; write nats://HOST:PORT")
    several = len(urls) > 1
    schemes = {
        _checked_scheme(url, f"URL {number}: " if several else "")
        for number, url in enumerate(urls, start=1)
    }
    if not (schemes <= set(_PLAIN) or schemes <= set(_WEBSOCKET)):
        raise ConfigError("ws:// and wss:// cannot stand beside nats:// and tls://")


def _checked_scheme(url: str, which: str) -> str:
    scheme, given, rest = url.partition("://")
    if not given:
        scheme, rest = "nats", url
    if scheme not in _PLAIN + _WEBSOCKET:
        raise ConfigError(f"{which}the scheme is none of nats, tls, ws, wss")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its text may hold a piece of the password
        raise ConfigError(f"{which}{_unreadable(scheme)}") from None
    if not host or any(map(str.isspace, host)) or port == 0:
        raise ConfigError(f"{which}{_unreadable(scheme)}")
    return scheme


def _unreadable(scheme: str) -> str:
    return f"write {scheme}://HOST:PORT, with a port from 1 to 65535"


def without_user_info(text: str) -> str:
    """Return what can be shown: all up to the last ``@`` may be users and passwords."""
    _, at, rest = text.rpartition("@")
    return f"…@{rest}" if at else text
