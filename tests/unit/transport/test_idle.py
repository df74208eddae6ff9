"""Connections between two streams: who gets one again, and what ends one."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Callable

import pytest

from dialback.errors import ProtocolError, PublishError
from dialback.transport.address import Address
from dialback.transport.connection import FrameConnection
from dialback.transport.idle import IdleConnections
from dialback.transport.two_part import PREFIX, FrameLimits, TwoPartMessage, encode
from support.scripted_requester import KILL, STOP

LOOPBACK = "127.0.0.1"
PATIENT = 1000.0
"""Seconds that no test waits."""
SHORT = 0.001


class Stream:
    """What had the connection before, or has it afterwards."""

    def __init__(self) -> None:
        self.frames: list[TwoPartMessage] = []
        self.told = asyncio.Event()
        self.finished = asyncio.Event()

    def frame_received(self, message: TwoPartMessage) -> None:
        self.frames.append(message)
        self.told.set()

    def data_parts_received(self, parts: list[bytes]) -> None:
        self.frames += [TwoPartMessage(data=part) for part in parts]
        self.told.set()

    def protocol_failed(self, error: ProtocolError) -> None:
        del error
        self.told.set()

    def peer_finished(self) -> None:
        self.finished.set()

    def connection_lost(self, error: PublishError | None) -> None:
        del error


class Requester:
    """Listens, and has a plain socket for each connection: a reset is no FIN to it."""

    def __init__(self) -> None:
        self._server = socket.create_server((LOOPBACK, 0))
        self._server.setblocking(False)
        self._sockets: list[socket.socket] = []
        self.address = Address(LOOPBACK, self._server.getsockname()[1])

    async def connect(self, stream: Stream | None = None) -> tuple[FrameConnection, socket.socket]:
        """A worker's connection, and this end of it."""
        connection = FrameConnection(stream or Stream(), limits=FrameLimits())
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: connection, LOOPBACK, self.address.port)
        peer, _ = await loop.sock_accept(self._server)
        self._sockets.append(peer)
        return connection, peer

    def close(self) -> None:
        for opened in (self._server, *self._sockets):
            opened.close()


@pytest.fixture
async def requester() -> AsyncGenerator[Requester]:
    requester = Requester()
    yield requester
    requester.close()


@pytest.fixture
async def idle() -> AsyncGenerator[IdleConnections]:
    idle = IdleConnections(PATIENT)
    yield idle
    idle.close()


async def _kept(
    idle: IdleConnections, requester: Requester
) -> tuple[FrameConnection, socket.socket]:
    connection, peer = await requester.connect()
    idle.keep(requester.address, connection)
    return connection, peer


async def _received(peer: socket.socket) -> bytes:
    """What the worker sent; empty is a FIN, and a reset is an error."""
    return await asyncio.get_running_loop().sock_recv(peer, 1024)


async def _close(*connections: FrameConnection) -> None:
    for connection in connections:
        connection.abort()
        assert await connection.wait_closed(10)


def _half_close(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def _reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


# --- who gets one -------------------------------------------------------------------------


async def test_the_one_that_was_kept_last_is_taken_first(
    idle: IdleConnections, requester: Requester
) -> None:
    first, _ = await _kept(idle, requester)
    second, _ = await _kept(idle, requester)
    third, _ = await _kept(idle, requester)
    assert len(idle) == 3
    assert idle.take(requester.address) is third
    assert len(idle) == 2
    idle.keep(requester.address, third)
    assert [idle.take(requester.address) for _ in range(4)] == [third, second, first, None]
    assert len(idle) == 0
    await _close(first, second, third)


async def test_none_of_another_address_is_taken(
    idle: IdleConnections, requester: Requester
) -> None:
    other = Requester()
    ours, _ = await _kept(idle, requester)
    theirs, _ = await _kept(idle, other)
    assert len(idle) == 2
    for host, port in ((LOOPBACK, 1), ("localhost", requester.address.port), ("127.0.0.2", 1)):
        assert idle.take(Address(host, port)) is None
    assert idle.take(Address(LOOPBACK, other.address.port)) is theirs, "an equal address will do"
    assert idle.take(other.address) is None
    assert idle.take(requester.address) is ours
    await _close(ours, theirs)
    other.close()


async def test_one_that_is_taken_is_open_and_belongs_to_whom_it_is_turned_to(
    idle: IdleConnections, requester: Requester
) -> None:
    before, after = Stream(), Stream()
    connection, peer = await requester.connect(before)
    idle.keep(requester.address, connection)
    assert idle.take(requester.address) is connection
    connection.turn_to(after, FrameLimits())
    connection.write(b"next")
    assert await _received(peer) == b"next"
    await asyncio.get_running_loop().sock_sendall(peer, STOP)
    await after.told.wait()
    assert (before.frames, after.frames) == ([], [TwoPartMessage(b'"stop"')])
    peer.shutdown(socket.SHUT_WR)
    await after.finished.wait()
    assert connection.open, "what its requester's FIN means is for the stream to say"
    await _close(connection)


# --- what ends one ------------------------------------------------------------------------


async def test_one_that_is_about_to_close_is_passed_over(
    idle: IdleConnections, requester: Requester
) -> None:
    older, _ = await _kept(idle, requester)
    newest, _ = await _kept(idle, requester)
    newest.abort()  # as a reset that was read: it is told in the next turn
    assert len(idle) == 2
    assert idle.take(requester.address) is older
    assert idle.take(requester.address) is None
    await _close(older)


async def test_one_that_refuses_writes_is_closed_and_never_taken(
    idle: IdleConnections, requester: Requester
) -> None:
    older, _ = await _kept(idle, requester)
    refusing, peer = await requester.connect()
    refusing.refuse_writes()
    idle.keep(requester.address, refusing)
    assert idle.take(requester.address) is older
    assert idle.take(requester.address) is None
    assert await _received(peer) == b""
    await _close(older, refusing)


async def test_those_that_are_kept_are_closed_each_in_its_time(
    requester: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, loop, now = IdleConnections(10.0), asyncio.get_running_loop(), 100.0
    timers: list[tuple[float, Callable[[], None]]] = []

    def call_at(when: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        timers.append((when, do))
        return asyncio.TimerHandle(when, do, (), loop)

    first, _ = await requester.connect()
    second, _ = await requester.connect()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: now)
        patched.setattr(loop, "call_at", call_at)
        idle.keep(requester.address, first)
        now = 104.0
        idle.keep(requester.address, second)
        [(when, close_old)] = timers
        assert when == 110.0
        now = 110.0
        close_old()
        assert (first.open, second.open, len(idle)) == (False, True, 1)
        assert [when for when, _ in timers] == [110.0, 114.0]
        now = 114.0
        timers.pop()[1]()
        assert (second.open, len(idle)) == (False, 0)
        assert len(timers) == 1, "none is set for nobody"
    await _close(first, second)


async def test_one_that_cannot_be_closed_keeps_no_other_open(
    requester: Requester, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = IdleConnections(SHORT)
    broken, _ = await _kept(idle, requester)
    other, peer = await _kept(idle, requester)

    def fail() -> None:
        raise OSError("broken")

    monkeypatch.setattr(broken, "close", fail)
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, why: told.append(why["exception"]))
    assert await _received(peer) == b""
    assert len(idle) == 0
    assert [str(error) for error in told] == ["broken"]
    await _close(broken, other)


@pytest.mark.parametrize(
    "data",
    [
        STOP,
        KILL,
        encode(b'{"release":1}'),
        encode(b"", b"data"),
        encode(b"h", b"d"),
        encode(),
        b"\xff" * 24,
        PREFIX.pack(65537, 0, 0),
        PREFIX.pack(0, 65537, 0),
    ],
    ids=lambda data: repr(data[:40]),
)
async def test_one_whose_requester_writes_is_closed_and_never_taken(
    idle: IdleConnections, requester: Requester, data: bytes
) -> None:
    connection, peer = await _kept(idle, requester)
    await asyncio.get_running_loop().sock_sendall(peer, data)
    assert await _received(peer) == b"", "a FIN, and no reset"
    assert len(idle) == 0
    assert idle.take(requester.address) is None
    assert await connection.wait_closed(10)


@pytest.mark.parametrize(
    "leave",
    [socket.socket.close, _half_close, _reset],
    ids=["close", "half-close", "reset"],
)
async def test_one_whose_requester_leaves_is_closed_and_never_taken(
    idle: IdleConnections, requester: Requester, leave: Callable[[socket.socket], None]
) -> None:
    connection, peer = await _kept(idle, requester)
    leave(peer)
    assert await connection.wait_closed(10)
    assert len(idle) == 0
    assert idle.take(requester.address) is None


async def test_one_that_ends_leaves_the_others(idle: IdleConnections, requester: Requester) -> None:
    first, _ = await _kept(idle, requester)
    middle, peer = await _kept(idle, requester)
    last, _ = await _kept(idle, requester)
    peer.close()
    assert await middle.wait_closed(10)
    assert len(idle) == 2
    assert [idle.take(requester.address) for _ in range(3)] == [last, first, None]
    await _close(first, last)


async def test_half_a_frame_of_its_requester_says_nothing_yet(
    idle: IdleConnections, requester: Requester
) -> None:
    connection, peer = await _kept(idle, requester)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(peer, STOP[:20])
    await loop.sock_sendall(peer, STOP[20:])
    assert await connection.wait_closed(10)
    assert len(idle) == 0


# --- its time -----------------------------------------------------------------------------


async def test_one_that_nobody_takes_is_closed_after_a_time(requester: Requester) -> None:
    idle = IdleConnections(SHORT)
    connection, peer = await _kept(idle, requester)
    assert await _received(peer) == b"", "a FIN, and no reset"
    assert await connection.wait_closed(10)
    assert connection.lost is None
    assert len(idle) == 0
    assert idle.take(requester.address) is None


async def test_the_time_of_one_that_was_taken_is_over(requester: Requester) -> None:
    idle = IdleConnections(SHORT)
    taken, _ = await _kept(idle, requester)
    assert idle.take(requester.address) is taken
    _, peer = await _kept(idle, requester)
    assert await _received(peer) == b"", "the time of a later one has come"
    assert taken.open
    idle.keep(requester.address, taken)
    assert await taken.wait_closed(10), "and it begins again"


# --- closing ------------------------------------------------------------------------------


async def test_close_closes_all_and_can_be_repeated(
    idle: IdleConnections, requester: Requester
) -> None:
    other = Requester()
    kept = [await _kept(idle, where) for where in (requester, requester, other)]
    idle.close()
    assert len(idle) == 0
    for connection, peer in kept:
        assert await _received(peer) == b"", "a FIN, and no reset"
        assert await connection.wait_closed(10)
    idle.close()
    assert (idle.take(requester.address), idle.take(other.address)) == (None, None)
    other.close()


async def test_close_does_not_touch_one_that_was_taken(
    idle: IdleConnections, requester: Requester
) -> None:
    connection, _ = await _kept(idle, requester)
    assert idle.take(requester.address) is connection
    idle.close()
    assert connection.open
    await _close(connection)


async def test_without_any_there_is_nothing_to_close() -> None:
    idle = IdleConnections(PATIENT)
    idle.close()
    assert len(idle) == 0


@pytest.mark.parametrize("how", ["closing", "closed", "aborted"])
async def test_one_that_this_end_closes_is_not_kept(
    idle: IdleConnections, requester: Requester, how: str
) -> None:
    connection, _ = await requester.connect()
    if how == "aborted":
        connection.abort()
    else:
        connection.close()
    if how == "closed":
        assert await connection.wait_closed(10)
    idle.keep(requester.address, connection)
    assert len(idle) == 0
    assert idle.take(requester.address) is None
    assert await connection.wait_closed(10)


async def test_one_whose_requester_has_sent_its_fin_is_closed_and_not_kept(
    idle: IdleConnections, requester: Requester
) -> None:
    stream = Stream()
    connection, peer = await requester.connect(stream)
    peer.shutdown(socket.SHUT_WR)
    await stream.finished.wait()
    assert connection.open
    idle.keep(requester.address, connection)
    assert len(idle) == 0
    assert idle.take(requester.address) is None
    assert await _received(peer) == b""
    assert await connection.wait_closed(10)


async def test_one_that_reads_no_more_is_closed_and_not_kept(
    idle: IdleConnections, requester: Requester
) -> None:
    stream = Stream()
    connection, peer = await requester.connect(stream)
    await asyncio.get_running_loop().sock_sendall(peer, b"\xff" * 24)
    await stream.told.wait()
    assert connection.open
    idle.keep(requester.address, connection)
    assert len(idle) == 0, "its next stream would hear neither an answer nor a kill"
    assert await connection.wait_closed(10)
