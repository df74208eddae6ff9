"""Connecting to NATS, with the settings a long-lived worker needs.

Source: jetstream section 1.3 (nats-py's defaults that must be changed) and 7. The first
connect has a limit of its own, because with endless reconnects nats-py would try a wrong
password for ever.
"""

import asyncio
import importlib
import logging
import os
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nats.errors
import tenacity
from nats.aio.client import Client

from dialback.errors import ConfigError, PermissionDeniedError, ServerUnavailableError
from dialback.queue.headers import HeaderClient
from dialback.queue.reconnects import Reconnects
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

# Seconds; nats-py's 120 would leave us blind for minutes. A connection ends when the third ping is
# due and none was answered: a frozen node is noticed after 8 to 12 s. Not shorter, because an
# engine that blocks the event loop, time after time, delays the answers as well.
_PING_INTERVAL: Final = 4
# No engine blocks the thread of the renewals. The node is noticed, and a silent one tried, in less
# than ack_wait / 3 of the default 30 s: one renewal is lost. With 4 s two were, and the lease.
_LEASE_PING_INTERVAL: Final = 2
_MAX_UNANSWERED_PINGS: Final = 2
_CONNECT_TIMEOUT: Final = 2.0  # seconds for each step with one server, see _timeout_for_each
_ONE_TRY: Final[dict[str, Any]] = {"allow_reconnect": False, "max_reconnect_attempts": 1}
_PENDING_BYTES: Final = 8 * 1024 * 1024
_CLOSE_TIMEOUT: Final = 5.0
_DISCARD_TIMEOUT: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Which nats-server, and as whom.

    Attributes:
        url: One URL, or several separated by commas.
        user, password, token: Plain credentials.
        nkey_seed_file, credentials_file: Paths of files with credentials.
        tls_ca, tls_cert, tls_key: Paths of PEM files; ``tls://`` URLs need at least the CA
            unless the system trusts it.
    """

    url: str = "nats://127.0.0.1:4222"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    nkey_seed_file: str | None = None
    credentials_file: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def urls(self) -> list[str]:
        """The URLs, one by one."""
        return [part.strip() for part in self.url.split(",") if part.strip()]

    @property
    def shown(self) -> str:
        """The URLs without user and password: for messages."""
        return ", ".join(re.sub("(?<=//).*@", "", url) for url in self.urls)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEvents:
    """What the owner of a connection wants to know.

    Attributes:
        disconnected: The server is gone; reconnecting goes on in the background.
        reconnected: It is back.
        closed: The client is closed for good (credentials expired, for instance).
    """

    disconnected: Callable[[], None] = lambda: None
    reconnected: Callable[[], None] = lambda: None
    closed: Callable[[], None] = lambda: None


async def connect(
    server: ServerAddress,
    *,
    name: str,
    role: str,
    within: float = 5.0,
    events: ConnectionEvents | None = None,
) -> Client:
    """Return a connected client that reconnects for ever.

    Args:
        server: Which server, and as whom.
        name: Connection name, shown by ``nats server report connections``.
        role: Last part of the inbox prefix: roles must not read each other's inboxes. As
            ``lease`` it notices a frozen node earlier.
        within: Seconds for the first connect, retries included.
        events: Callbacks.

    Raises:
        ServerUnavailableError: If no server answers within ``within`` seconds.
        PermissionDeniedError: If the server refuses the credentials.
        ConfigError: If a credentials or TLS file cannot be read.
    """
    hooks = events or ConnectionEvents()
    _check_credentials(server)
    options = _options(server, name=name, role=role)
    options["connect_timeout"] = _timeout_for_each(len(server.urls), within)
    await _probe(server, options, within)
    client = HeaderClient()
    try:
        async with asyncio.timeout(within):  # it may have gone since the probe
            await client.connect(  # pyright: ignore[reportUnknownMemberType]
                server.urls,
                **options,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_to_server_handler=Reconnects(client).choose,
                ping_interval=_LEASE_PING_INTERVAL if role == "lease" else _PING_INTERVAL,
                max_outstanding_pings=_MAX_UNANSWERED_PINGS,
                pending_size=_PENDING_BYTES,
                error_cb=_log_error,
                disconnected_cb=_as_callback(hooks.disconnected),
                reconnected_cb=_as_callback(hooks.reconnected),
                closed_cb=_as_callback(hooks.closed),
            )
    except TimeoutError as error:
        await _discard(client)
        raise _unavailable(server, error) from error
    except asyncio.CancelledError:
        await _discard(client)
        raise
    return client


async def close(client: Client) -> None:
    """Close for good; never raises for a server that is gone."""
    await _finish(client.close(), _CLOSE_TIMEOUT)


async def _discard(client: Client) -> None:
    """Close what a failed connect left open, without the callbacks of a closed connection."""
    if client.is_connected or client.is_connecting:
        closing = client._close(  # pyright: ignore[reportPrivateUsage]
            Client.CLOSED, do_cbs=False
        )
        await _finish(closing, _DISCARD_TIMEOUT)


async def _finish(closing: Coroutine[Any, Any, None], within: float) -> None:
    """Await nats-py's close in a task of its own.

    It ends with CancelledError while it reconnects, and never after a failed TLS handshake.
    """
    task = asyncio.create_task(closing, name="close-nats")
    await asyncio.wait((task,), timeout=within)
    await cancel_and_wait(task, within=within)


async def _probe(server: ServerAddress, options: dict[str, Any], within: float) -> None:
    """Connect once without reconnects, retrying while the server may still be starting."""
    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_before_delay(within),
        wait=tenacity.wait_exponential(multiplier=0.1, max=1.0) + tenacity.wait_random(0, 0.1),
        retry=tenacity.retry_if_exception_type(ServerUnavailableError),
        reraise=True,
    )
    urls = random.sample(server.urls, k=len(server.urls))  # spreads the connections
    async for attempt in retrying:
        with attempt:
            await _connect_once(server, urls, options, within)
        urls = urls[1:] + urls[:1]


async def _connect_once(
    server: ServerAddress, urls: list[str], options: dict[str, Any], within: float
) -> None:
    """Connect to the first URL that takes the connection; one that then is silent is an error."""
    seen: list[Exception] = []

    async def note(error: Exception) -> None:
        seen.append(error)

    client = Client()
    try:
        async with asyncio.timeout(within):
            await client.connect(  # pyright: ignore[reportUnknownMemberType]
                urls, **options, dont_randomize=True, error_cb=note, **_ONE_TRY
            )
    except (OSError, TimeoutError, nats.errors.NoServersError, nats.errors.TimeoutError) as error:
        raise _unavailable(server, seen[-1] if seen else error) from error
    except ImportError as error:
        raise ConfigError(f"files of credentials need: pip install nkeys ({error})") from error
    except nats.errors.Error as error:
        if "authorization" in str(error).lower() or "permissions" in str(error).lower():
            raise PermissionDeniedError(
                f"nats-server at {server.shown} refuses the credentials ({error}); they are"
                " DIALBACK_USER and DIALBACK_PASSWORD, DIALBACK_TOKEN, DIALBACK_CREDENTIALS_FILE,"
                " or DIALBACK_NKEY_SEED_FILE"
            ) from error
        raise ServerUnavailableError(f"nats-server at {server.shown}: {error}") from error
    finally:
        await _discard(client)


def _unavailable(server: ServerAddress, error: BaseException) -> ServerUnavailableError:
    return ServerUnavailableError(
        f"no nats-server answers at {server.shown} ({_reason(error)}). Start one with JetStream"
        " (nats-server -js), or name yours with -s/--server or NATS_SERVER"
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return (str(error) or type(error).__name__).removeprefix("nats: ")


def _timeout_for_each(urls: int, within: float) -> float:
    """Return seconds for each step with a server: a silent one leaves time for all others."""
    return min(_CONNECT_TIMEOUT, within / (urls + 1))


def _options(server: ServerAddress, *, name: str, role: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": name,
        "inbox_prefix": f"_INBOX.{role}",
        "reconnect_time_wait": 0.05,  # of a first connect only; then see Reconnects
        "user": server.user,
        "password": server.password,
        "token": server.token,
        "nkeys_seed": server.nkey_seed_file,
        "user_credentials": server.credentials_file,
    }
    options = {key: value for key, value in options.items() if value is not None}
    if server.tls_ca or server.tls_cert or server.url.startswith("tls://"):
        options["tls"] = _tls_context(server)
        # Without it nats-py sends the password in plain text to a server that offers no TLS.
        options["tls_handshake_first"] = True
    return options


def _check_credentials(server: ServerAddress) -> None:
    """nats-py reads the files while it connects, and would take it for a network error."""
    for path in filter(None, (server.nkey_seed_file, server.credentials_file)):
        try:
            content = bytearray(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"credentials cannot be read: {error}") from error
        if path == server.nkey_seed_file:
            _check_seed(path, content)


def _check_seed(path: str, content: bytearray) -> None:
    nkeys: Any = importlib.import_module("nkeys")  # only here: it takes a while
    try:
        nkeys.from_seed(content.strip())
    except nkeys.NkeysError as error:
        raise ConfigError(f"{path} holds no nkey seed ({error})") from error


def _tls_context(server: ServerAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=server.tls_ca)
        if server.tls_cert:
            context.load_cert_chain(server.tls_cert, server.tls_key)
    except OSError as error:
        raise ConfigError(f"TLS files cannot be read: {error}") from error
    return context


async def _log_error(error: Exception) -> None:
    """Permission errors show up here only, not at the call that caused them.

    Failed attempts to reconnect come several times a second; that the connection was lost is said.
    """
    attempt = isinstance(error, (OSError, nats.errors.NoServersError, nats.errors.TimeoutError))
    denied = "permissions violation" in str(error).lower()
    logger.log(
        logging.ERROR if denied else logging.DEBUG if attempt else logging.INFO,
        "NATS connection error",
        extra={"reason": str(error) or type(error).__name__},
    )


def _as_callback(function: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def callback() -> None:
        function()

    return callback
