import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from dialback.errors import ConfigError, ServerUnavailableError
from dialback.queue.connection import ServerAddress, connect
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
