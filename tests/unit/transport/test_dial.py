import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Generator
from typing import Any, cast

import pytest
import uvloop

from dialback.errors import CallHomeForbiddenError, DialError, PublishError
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.messages import ResumeOffer
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import TwoPartMessage
from support.scripted_requester import ScriptedRequester

LOOPBACK = "127.0.0.1"
QUICK = DialSettings(attempts=2, total_timeout=5.0, connect_timeout=2.0)
ONCE = DialSettings(attempts=1, connect_timeout=0.05)


class Dialling:
    """A dialler that counts its retries."""

    def __init__(
        self, settings: DialSettings = QUICK, policy: CallHomePolicy | None = None
    ) -> None:
        self.retries = 0
        self.dialer = Dialer(policy or CallHomePolicy(), settings, on_retry=self._count)

    def _count(self) -> None:
        self.retries += 1

    async def dial(
        self, host: str, port: int, total_timeout: float | None = None
    ) -> ResponseSender:
        return await self.dialer.dial(Address(host, port), "subject-1", total_timeout=total_timeout)


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def black_hole() -> Generator[int]:
    """A port that answers nothing: its backlog is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((LOOPBACK, port))
        yield port


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Answer name look-ups without a query: with addresses, or by raising."""
    asked: list[str] = []

    def install(*answers: str | OSError) -> list[str]:
        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)
            if isinstance(answers[0], OSError):
                raise answers[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answers]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        return asked

    return install


async def _close(sender: ResponseSender) -> None:
    sender.abort()
    assert await sender.connection.wait_closed(10)


# --- reached ------------------------------------------------------------------------------


async def test_the_handshake_is_on_the_wire_when_dial_returns(requester: ScriptedRequester) -> None:
    dialling = Dialling()
    sender = await dialling.dial(LOOPBACK, requester.port)
    peer = await requester.connection()
    assert await peer.frame() == TwoPartMessage(b'{"subject":"subject-1","stream_type":"response"}')
    assert sender.address == requester.address
    assert sender.dials == 1
    assert dialling.retries == 0
    await _close(sender)


async def test_settings_have_defaults(requester: ScriptedRequester) -> None:
    sender = await Dialer(CallHomePolicy()).dial(Address(LOOPBACK, requester.port), "s")
    assert sender.dials == 1
    await _close(sender)


async def test_a_name_is_resolved_and_the_address_that_was_checked_is_dialled(
    requester: ScriptedRequester, resolves: Callable[..., list[str]]
) -> None:
    asked = resolves("8.8.8.8", LOOPBACK)
    sender = await Dialling().dial("requester.invalid", requester.port)
    assert asked == ["requester.invalid"]
    assert sender.address == f"requester.invalid:{requester.port}"
    await _close(sender)


async def test_of_a_name_with_several_addresses_each_attempt_dials_the_next(
    requester: ScriptedRequester, resolves: Callable[..., list[str]]
) -> None:
    asked = resolves("127.0.0.2", LOOPBACK)  # nobody listens on the first
    dialling = Dialling()
    sender = await dialling.dial("requester.invalid", requester.port)
    assert (sender.dials, dialling.retries, len(asked)) == (2, 1, 2)
    await _close(sender)


async def test_a_requester_that_comes_back_is_reached_by_a_retry(closed_port: int) -> None:
    servers: list[asyncio.Server] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    retried = asyncio.Event()
    dialer = Dialer(
        CallHomePolicy(), DialSettings(attempts=50, total_timeout=60), on_retry=retried.set
    )
    dialling = asyncio.create_task(dialer.dial(Address(LOOPBACK, closed_port), "s"))
    await retried.wait()
    servers.append(await asyncio.start_server(accept, LOOPBACK, closed_port))
    sender = await dialling
    assert sender.dials >= 2
    await _close(sender)
    servers[0].close()


# --- not reached --------------------------------------------------------------------------


async def test_refused_by_all_attempts_the_requester_is_gone(closed_port: int) -> None:
    dialling = Dialling(DialSettings(attempts=3))
    with pytest.raises(DialError, match=r"Connection refused|Connect call failed") as caught:
        await dialling.dial(LOOPBACK, closed_port)
    assert caught.value.gone
    assert caught.value.attempts == 3
    assert "(3 attempts)" in str(caught.value)
    assert f"{LOOPBACK}:{closed_port}" in str(caught.value)
    assert dialling.retries == 2


async def test_one_attempt_is_said_in_the_singular(closed_port: int) -> None:
    with pytest.raises(DialError, match=r"\(1 attempt\)"):
        await Dialling(ONCE).dial(LOOPBACK, closed_port)


async def test_a_black_hole_is_unreachable_and_not_gone(black_hole: int) -> None:
    with pytest.raises(DialError, match=r"no answer in 0\.1 s") as caught:
        await Dialling(DialSettings(attempts=2, connect_timeout=0.1)).dial(LOOPBACK, black_hole)
    assert not caught.value.gone
    assert caught.value.attempts == 2


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.1])
async def test_no_retry_is_made_that_would_pass_the_total_timeout(
    black_hole: int, seconds: float
) -> None:
    dialling = Dialling(DialSettings(attempts=50))
    with pytest.raises(DialError) as caught:
        await dialling.dial(LOOPBACK, black_hole, total_timeout=seconds)
    assert caught.value.attempts == 1
    assert dialling.retries == 0


async def test_a_total_timeout_above_the_settings_changes_nothing(black_hole: int) -> None:
    settings = DialSettings(attempts=50, total_timeout=0.05)
    with pytest.raises(DialError) as caught:
        await Dialling(settings).dial(LOOPBACK, black_hole, total_timeout=600.0)
    assert caught.value.attempts == 1


async def test_a_name_that_is_not_resolved_is_unreachable(
    resolves: Callable[..., list[str]],
) -> None:
    asked = resolves(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    with pytest.raises(DialError, match=r"name not resolved \(Name or service not known\)") as e:
        await Dialling().dial("nobody.invalid", 9)
    assert not e.value.gone
    assert asked == ["nobody.invalid"] * 2


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (OSError(errno.ENETUNREACH, "Network is unreachable"), False),
        (OSError(errno.EHOSTUNREACH, "No route to host"), False),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), False),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (OSError("without a number"), False),
        (OSError(), False),
    ],
    ids=repr,
)
async def test_what_answered_is_gone_and_what_did_not_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, error: OSError, gone: bool
) -> None:
    async def create_connection(*_: Any) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
    with pytest.raises(DialError, match=r"dial 127\.0\.0\.1:9: ") as caught:
        await Dialling(ONCE).dial(LOOPBACK, 9)
    assert caught.value.gone is gone


@pytest.mark.parametrize("gone", [True, False])
async def test_a_handshake_that_cannot_be_written_is_a_failed_dial(
    requester: ScriptedRequester, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    senders: list[ResponseSender] = []

    def send_handshake(sender: ResponseSender, subject: str, offer: ResumeOffer | None) -> None:
        senders.append(sender)
        raise PublishError(f"no {subject}", client_gone=gone)

    monkeypatch.setattr(ResponseSender, "send_handshake", send_handshake)
    with pytest.raises(DialError, match="no subject-1") as caught:
        await Dialling().dial(LOOPBACK, requester.port)
    assert caught.value.gone is gone
    for sender in senders:
        assert await sender.connection.wait_closed(10)
    assert len(senders) == 2


class SlowConnect:
    """Opens connections, but never says so: what a network that loses the last packet does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        self.connections: list[Any] = []
        loop = asyncio.get_running_loop()
        self._connect: Any = loop.create_connection
        monkeypatch.setattr(loop, "create_connection", self._create_connection)

    async def _create_connection(self, *arguments: Any) -> None:
        _, connection = await self._connect(*arguments)
        self.connections.append(connection)
        self.reached.set()
        await asyncio.Event().wait()


async def test_the_connect_timeout_leaves_no_connection(
    requester: ScriptedRequester, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowConnect(monkeypatch)
    with pytest.raises(DialError, match="no answer"):
        await Dialling(ONCE).dial(LOOPBACK, requester.port)
    assert await slow.connections[0].wait_closed(10)


async def test_a_cancelled_dial_leaves_no_connection(
    requester: ScriptedRequester, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowConnect(monkeypatch)
    dialling = asyncio.create_task(Dialling().dial(LOOPBACK, requester.port))
    await slow.reached.wait()
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    assert await slow.connections[0].wait_closed(10)


async def test_a_dial_cancelled_while_it_resolves_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()

    async def never(*_: Any, **__: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    dialling = asyncio.create_task(Dialling().dial("slow.invalid", 9))
    await asked.wait()
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling


# --- forbidden ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["169.254.169.254", "8.8.8.8", "::ffff:8.8.8.8", "fe80::1%lo"])
async def test_a_forbidden_address_is_never_dialled_and_never_retried(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    async def create_connection(*_: Any) -> None:
        raise AssertionError("dialled")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
    dialling = Dialling()
    with pytest.raises(CallHomeForbiddenError, match="DIALBACK_CALL_HOME_NETWORKS"):
        await dialling.dial(host, 80)
    assert dialling.retries == 0


async def test_a_name_is_judged_by_what_it_resolves_to(
    resolves: Callable[..., list[str]],
) -> None:
    resolves("169.254.169.254", "8.8.8.8")
    with pytest.raises(CallHomeForbiddenError) as caught:
        await Dialling().dial("metadata.invalid", 80)
    assert caught.value.address == "169.254.169.254"
    assert "metadata.invalid (169.254.169.254)" in str(caught.value)


async def test_the_policy_given_is_the_one_that_judges(requester: ScriptedRequester) -> None:
    with pytest.raises(CallHomeForbiddenError, match=r"127\.0\.0\.1"):
        await Dialling(policy=CallHomePolicy(["10.0.0.0/8"])).dial(LOOPBACK, requester.port)


# --- on the loop that workers run on ------------------------------------------------------


def test_under_uvloop_a_dial_is_answered_or_refused(closed_port: int) -> None:
    async def main() -> TwoPartMessage | None:
        with pytest.raises(DialError) as caught:
            await Dialling().dial(LOOPBACK, closed_port)
        assert caught.value.gone
        async with ScriptedRequester() as requester:
            sender = await Dialling().dial(LOOPBACK, requester.port)
            frame = await (await requester.connection()).frame()
            await _close(sender)
            return frame

    loop_factory = cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        frame = runner.run(main())
    assert frame is not None
    assert frame.header == b'{"subject":"subject-1","stream_type":"response"}'
