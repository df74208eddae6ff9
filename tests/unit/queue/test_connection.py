import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import pytest
from nats.aio.client import Client

from dialback.errors import ConfigError, ServerUnavailableError
from dialback.queue.connection import ServerAddress, close, connect
from support.black_hole import NobodyListens

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SECRET = "correct horse"  # noqa: S105 -- no secret
INFO = b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true}\r\n'


@asynccontextmanager
async def server(serve: Serve) -> AsyncGenerator[str]:
    """A TCP server; yields its URL."""
    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a nats-server of which nobody wants anything."""
    writer.write(INFO)
    async for line in reader:
        if line == b"PING\r\n":
            writer.write(b"PONG\r\n")
    await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def test_urls_are_separated_by_commas() -> None:
    address = ServerAddress(url="nats://a:1, nats://b:2,,")
    assert address.urls == ["nats://a:1", "nats://b:2"]


def test_secrets_are_not_shown() -> None:
    shown = repr(ServerAddress(user="me", password=SECRET, token=SECRET))
    assert "me" in shown
    assert SECRET not in shown


async def test_no_server_is_an_error_that_names_it_and_says_what_to_do() -> None:
    with NobodyListens() as nobody:
        url = f"nats://{nobody.address}"
        with pytest.raises(ServerUnavailableError) as raised:
            await connect(ServerAddress(url=url), name="t", role="tests", within=0.5)
    text = str(raised.value)
    assert url in text
    assert "Connection refused" in text
    assert "nats-server -js" in text
    assert "NATS_SERVER" in text


async def test_a_server_that_says_nothing_is_given_up() -> None:
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await closed(writer)
        silent.set()

    async with server(serve) as url:
        with pytest.raises(ServerUnavailableError, match="no nats-server answers"):
            await connect(ServerAddress(url=url), name="t", role="tests", within=0.2)
        await silent.wait()  # we have hung up


async def test_a_silent_server_leaves_time_for_the_others() -> None:
    """It takes connections and says nothing, as one that is frozen does."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await closed(writer)

    async with server(silent) as first, server(answer_pings) as second:
        address = ServerAddress(url=f"{first},{second}")
        opening = [connect(address, name="t", role="tests", within=3.0) for _ in range(12)]
        ends = await asyncio.gather(*opening, return_exceptions=True)
        for client in ends:
            if isinstance(client, Client):
                assert client.connected_url == urlparse(second)
                await close(client)
    assert [isinstance(end, Client) for end in ends] == [True] * 12


@pytest.mark.parametrize(("role", "limit"), [("worker", 12.0), ("lease", 30 / 3)])
async def test_a_frozen_server_is_noticed_in_time(role: str, limit: float) -> None:
    """That of the renewals before the next one, with time for another server that is silent."""
    async with server(answer_pings) as url:
        client = await connect(ServerAddress(url=url), name="t", role=role)
        options = client.options
        await close(client)
    noticed = options["ping_interval"] * (options["max_outstanding_pings"] + 1)
    assert noticed <= limit
    if role == "lease":
        assert noticed + options["connect_timeout"] < limit


async def test_a_reconnect_that_a_server_leaves_unanswered_is_closed() -> None:
    connections = 0
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        match connections:
            case 1:  # the probe
                await answer_pings(reader, writer)
            case 2:
                writer.write(INFO)
                await reader.readuntil(b"PING\r\n")
                writer.write(b"PONG\r\n")
                await closed(writer)
            case 3:
                await reader.read()
                await closed(writer)
            case _:
                over.set()
                await answer_pings(reader, writer)

    async with server(serve) as url:
        client = await connect(ServerAddress(url=url), name="t", role="tests", within=0.5)
        async with asyncio.timeout(10):
            await over.wait()
        await close(client)


async def test_something_else_that_answers_is_named() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await reader.read()
        await closed(writer)

    async with server(serve) as url:
        with pytest.raises(ServerUnavailableError, match="expecting INFO"):
            await connect(ServerAddress(url=url), name="t", role="tests", within=0.2)


async def test_a_server_that_dies_after_the_first_answer_is_given_up() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            writer.write(INFO)
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
            await reader.read()
        await closed(writer)

    async with server(serve) as url:
        with pytest.raises(ServerUnavailableError, match="no nats-server answers"):
            await connect(ServerAddress(url=url), name="t", role="tests", within=0.5)
    assert connections > 1


async def test_a_connect_that_is_cancelled_closes_what_it_opened() -> None:
    connections = 0
    again, over = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            writer.write(INFO)
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
        else:  # the probe has succeeded
            again.set()
        await reader.read()
        await closed(writer)
        if connections > 1:
            over.set()

    async with server(serve) as url:
        connecting = asyncio.create_task(connect(ServerAddress(url=url), name="t", role="tests"))
        await again.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        async with asyncio.timeout(10):
            await over.wait()


@pytest.mark.parametrize("setting", ["nkey_seed_file", "credentials_file"])
async def test_a_file_of_credentials_that_is_not_there_is_a_setting_to_correct(
    setting: str, tmp_path: Path
) -> None:
    address = ServerAddress(**{setting: str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match="missing"):
        await connect(address, name="t", role="tests", within=0.5)


@pytest.mark.parametrize("setting", ["tls_ca", "tls_cert"])
async def test_a_tls_file_that_is_not_there_is_a_setting_to_correct(
    setting: str, tmp_path: Path
) -> None:
    address = ServerAddress(**{setting: str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match="TLS files cannot be read"):
        await connect(address, name="t", role="tests", within=0.5)


async def test_a_tls_url_never_speaks_in_plain_text() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        heard.put_nowait(await reader.read(100))
        await closed(writer)

    async with server(serve) as url:
        address = ServerAddress(url=url.replace("nats://", "tls://"), password=SECRET)
        with pytest.raises(ServerUnavailableError):
            await connect(address, name="t", role="tests", within=0.2)
        assert SECRET.encode() not in await heard.get()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://u:secret@a:1, tls://to%40ken@b:2", "nats://a:1, tls://b:2"),
        ("nats://u:p@ss@a:1", "nats://a:1"),
    ],
)
def test_no_password_of_a_url_is_shown(url: str, shown: str) -> None:
    assert ServerAddress(url=url).shown == shown


async def test_a_url_with_a_password_is_named_without_it() -> None:
    server = ServerAddress(url="nats://user:secret@127.0.0.1:1")
    with pytest.raises(ServerUnavailableError) as raised:
        await connect(server, name="t", role="tests", within=0.05)
    assert "nats://127.0.0.1:1 " in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_a_file_that_holds_no_seed_is_named(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.write_text("no seed\n")
    server = ServerAddress(nkey_seed_file=str(seed))
    with pytest.raises(ConfigError, match=f"{seed} holds no nkey seed"):
        await connect(server, name="t", role="tests", within=0.05)
