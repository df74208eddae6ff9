import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import orjson
import pytest
from nats.aio.client import Client

from dialback.errors import PermissionDeniedError, ServerUnavailableError
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress, close, connect
from dialback.queue.embedded_server import EmbeddedServer, find_server
from dialback.queue.topology import Endpoint
from support.black_hole import BlackHole
from support.eventually import eventually
from support.queue_rig import LIMIT, provision

pytestmark = pytest.mark.integration

LOGIN = ["--user", "me", "--pass", "right"]
RIGHT = "right"
WRONG = "wrong"


@asynccontextmanager
async def server_without_jetstream(folder: Path) -> AsyncGenerator[str]:
    process = await asyncio.create_subprocess_exec(
        *(find_server(), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(folder)),
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def url() -> str:
        for file in await asyncio.to_thread(lambda: list(folder.glob("*.ports"))):
            if text := await asyncio.to_thread(file.read_bytes):
                return str(orjson.loads(text)["nats"][0])
        return ""

    try:
        yield await eventually(url)
    finally:
        process.terminate()
        await process.wait()


async def test_the_right_credentials_are_accepted_and_wrong_ones_refused() -> None:
    async with EmbeddedServer(arguments=LOGIN) as server:
        right = ServerAddress(url=server.url, user="me", password=RIGHT)
        client = await QueueClient.open(right, name="t", role="tests")
        await client.api.request("INFO")
        await client.close()
        for address in (
            ServerAddress(url=server.url, user="me", password=WRONG),
            ServerAddress(url=server.url),
            ServerAddress(url=server.url, token=WRONG),
        ):
            with pytest.raises(PermissionDeniedError) as raised:
                await QueueClient.open(address, name="t", role="tests", within=1000.0)
            assert f"{server.url} refuses the credentials" in str(raised.value)
            assert "DIALBACK_USER" in str(raised.value)


async def test_a_server_without_jetstream_is_told_apart(tmp_path: Path, endpoint: Endpoint) -> None:
    async with server_without_jetstream(tmp_path) as url:
        client = await QueueClient.open(ServerAddress(url=url), name="t", role="tests")
        with pytest.raises(ServerUnavailableError, match="start nats-server with -js"):
            await client.api.request("INFO")
        with pytest.raises(ServerUnavailableError, match="start nats-server with -js"):
            await provision(client, endpoint)
        await client.close()


async def test_a_lost_connection_comes_back_and_both_are_told(own_server: EmbeddedServer) -> None:
    gone, back, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    events = ConnectionEvents(disconnected=gone.set, reconnected=back.set, closed=closed.set)
    client = await QueueClient.open(
        ServerAddress(url=own_server.url), name="t", role="tests", events=events
    )
    url = own_server.url
    async with asyncio.timeout(LIMIT):
        await own_server.kill()
        await gone.wait()
        assert client.server_host == ("", 4222)
        assert await own_server.start() == url
        await back.wait()
    await client.api.request("INFO")
    assert not closed.is_set()
    await client.close()
    assert closed.is_set()


async def test_the_client_knows_its_server(nats_server: EmbeddedServer) -> None:
    address = ServerAddress(url=f"nats://127.0.0.1:1,{nats_server.url}")
    client = await QueueClient.open(address, name="t", role="tests")
    assert client.server_host == ("127.0.0.1", int(nats_server.url.rpartition(":")[2]))
    assert client.server_version.startswith("2.")
    await client.close()


async def test_a_url_where_nobody_answers_leaves_time_for_the_others(
    nats_server: EmbeddedServer,
) -> None:
    with BlackHole() as hole:
        address = ServerAddress(url=f"nats://{hole.address},{nats_server.url}")
        opening = [connect(address, name="t", role="tests", within=3.0) for _ in range(12)]
        ends = await asyncio.gather(*opening, return_exceptions=True)
        for client in ends:
            if isinstance(client, Client):
                await close(client)
    assert all(isinstance(end, Client) for end in ends), ends


async def test_each_role_has_an_inbox_prefix_of_its_own(nats_server: EmbeddedServer) -> None:
    client = await connect(ServerAddress(url=nats_server.url), name="t", role="worker")
    assert client.new_inbox().startswith("_INBOX.worker.")
    await client.close()


async def test_closing_is_harmless_when_the_server_is_gone_or_it_was_closed(
    own_server: EmbeddedServer,
) -> None:
    client = await QueueClient.open(ServerAddress(url=own_server.url), name="t", role="tests")
    await own_server.kill()
    await client.close()
    await client.close()
    with pytest.raises(nats.errors.ConnectionClosedError):
        await client.connection.flush()


async def test_a_forbidden_subject_is_logged_as_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "server.conf"
    config.write_text(
        "authorization { users: [{ user: me, password: right, permissions: { publish: ok } }] }"
    )
    async with EmbeddedServer(arguments=["-c", str(config)]) as server:
        address = ServerAddress(url=server.url, user="me", password=RIGHT)
        client = await connect(address, name="t", role="tests")
        await client.publish("forbidden", b"")
        await client.flush()

        async def errors() -> list[str]:
            records = [r for r in caplog.records if r.levelname == "ERROR"]
            return [str(vars(record)["reason"]) for record in records]

        (reason,) = await eventually(errors)
        assert "permissions violation for publish to" in reason.lower()
        assert client.is_connected
        await client.close()


async def test_nats_py_still_has_the_private_close_that_a_failed_connect_needs() -> None:
    closed = asyncio.Event()

    async def note() -> None:
        closed.set()

    async with EmbeddedServer() as server:
        client = Client()
        await client.connect(server.url, closed_cb=note)  # pyright: ignore[reportUnknownMemberType]
        await client._close(Client.CLOSED, do_cbs=False)  # pyright: ignore[reportPrivateUsage]
    assert client.is_closed
    assert not closed.is_set()
