import asyncio
import socket
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from typing_extensions import override

from dialback.errors import FrameTooLargeError, ProtocolError, PublishError
from dialback.transport.connection import FrameConnection, keepalive_options
from dialback.transport.two_part import FrameLimits, TwoPartMessage, encode
from support.fake_transport import FakeTransport
from support.scripted_requester import STOP, CallHome, ScriptedRequester

MIB = 1024 * 1024
BIG = encode(b"", b"x" * MIB)
SMALL_LIMITS = FrameLimits(header=64, data=64)


class Recorder:
    """A frame handler that remembers what it was told."""

    def __init__(self) -> None:
        self.frames: list[TwoPartMessage] = []
        self.failures: list[ProtocolError] = []
        self.received = asyncio.Event()
        self.finished = asyncio.Event()
        self.closed = asyncio.Event()
        self.error: PublishError | None = None
        self.finishes = 0

    def frame_received(self, message: TwoPartMessage) -> None:
        self.frames.append(message)
        self.received.set()

    def data_parts_received(self, parts: list[bytes]) -> None:
        self.frames += [TwoPartMessage(b"", part) for part in parts]
        self.received.set()

    def protocol_failed(self, error: ProtocolError) -> None:
        self.failures.append(error)
        self.received.set()

    def peer_finished(self) -> None:
        self.finishes += 1
        self.finished.set()

    def connection_lost(self, error: PublishError | None) -> None:
        self.error = error
        self.closed.set()


async def _connect(
    requester: ScriptedRequester,
    recorder: Recorder | None = None,
    *,
    limits: FrameLimits | None = None,
    send_timeout: float = 60.0,
) -> tuple[FrameConnection, CallHome]:
    connection = FrameConnection(
        recorder or Recorder(), limits=limits or FrameLimits(), send_timeout=send_timeout
    )
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: connection, "127.0.0.1", requester.port)
    return connection, await requester.connection()


async def _turns(number: int = 20) -> None:
    """Let the loop turn: what could happen by itself has happened."""
    for _ in range(number):
        await asyncio.sleep(0)


async def _congest(connection: FrameConnection) -> int:
    """Write until the peer, which does not read, holds us back; return the frames written."""
    for number in range(1, 256):
        connection.write(BIG)
        await _turns(2)
        if connection.congested:
            return number
    raise AssertionError("256 MiB were taken without back-pressure")


# --- writing ------------------------------------------------------------------------------


async def test_frames_of_one_turn_leave_together_in_the_order_written() -> None:
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    for number in range(10):
        connection.write(b"%d" % number, b";")
    assert transport.calls == []
    await _turns(1)
    assert transport.calls == [b"0;1;2;3;4;5;6;7;8;9;"]
    connection.write(b"next")
    await _turns(1)
    assert transport.calls[1:] == [b"next"]


async def test_many_bytes_leave_before_the_turn_ends() -> None:
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    connection.write(b"x" * 40_000)
    assert transport.calls == []
    connection.write(b"y" * 40_000)
    assert transport.calls == [b"x" * 40_000 + b"y" * 40_000]


async def test_coalesced_frames_arrive_in_order(requester: ScriptedRequester) -> None:
    connection, peer = await _connect(requester)
    for number in range(1000):
        connection.write(encode(b"", b"item-%d" % number))
        if connection.breath_due:
            await _turns(1)
    for number in range(1000):
        assert await peer.frame() == TwoPartMessage(b"", b"item-%d" % number)
    connection.abort()


@pytest.mark.parametrize(("frames", "seconds"), [(256, 0.0), (2, 0.003)])
async def test_a_writer_should_breathe_after_256_frames_or_2_ms_without_a_turn(
    monkeypatch: pytest.MonkeyPatch, frames: int, seconds: float
) -> None:
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    now = 100.0
    # The loop's own time would not do: uvloop reads the clock once a turn.
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(frames - 1):
        connection.write(b"x")
    assert not connection.breath_due
    now += seconds
    connection.write(b"x")
    assert connection.breath_due
    await _turns(1)
    assert not connection.breath_due


@pytest.mark.parametrize("size", [300, 5_000, 70_000])
async def test_large_frames_leave_before_the_turn_ends_and_still_make_the_writer_breathe(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    # A transport that is full asks for it as well; this one is never full.
    monkeypatch.setattr("dialback.transport.connection._HIGH_WATER_BYTES", 2**30)
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(255):
        connection.write(b"x" * size)
    assert transport.calls
    assert not connection.breath_due
    connection.write(b"x" * size)
    assert connection.breath_due
    await _turns(1)
    connection.write(b"x" * 70_000)
    assert not connection.breath_due
    now += 0.003
    connection.write(b"x")
    assert connection.breath_due


@pytest.mark.parametrize(
    ("turn", "given"), [(0.0, 0.002), (0.0001, 0.002), (0.008, 0.048), (0.03, 0.05)]
)
async def test_a_stream_that_writes_turn_after_turn_is_given_time_to_write_more(
    monkeypatch: pytest.MonkeyPatch, turn: float, given: float
) -> None:
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    loop = asyncio.get_running_loop()
    later: list[tuple[float, Callable[[], None]]] = []

    def call_later(seconds: float, leave: Callable[..., None], *told: Any) -> asyncio.TimerHandle:
        later.append((seconds, lambda: leave(*told)))
        return asyncio.TimerHandle(0.0, leave, told, loop)

    monkeypatch.setattr(loop, "call_later", call_later)
    for number in range(4):
        connection.write(b"%d" % number)
        now += turn
        await _turns(1)
    assert transport.calls == [b"0", b"1", b"2", b"3"]  # the first ones leave at once
    connection.write(b"4")
    now += turn
    await _turns(1)
    [(seconds, flush)] = later
    assert turn + seconds == pytest.approx(given, abs=0.0005)  # timers are shared
    for number in range(5, 8):
        now += given / 4
        connection.write(b"%d" % number)
        assert not connection.breath_due, "the loop turns"
        await _turns(1)
    assert transport.calls[4:] == []
    flush()
    assert transport.calls[4:] == [b"4567"]
    now += 0.1  # a pause: whoever writes again after it is not kept waiting
    connection.write(b"8")
    await _turns(1)
    assert transport.calls[5:] == [b"8"]
    assert len(later) == 1


class Clock:
    """The time and the timer of one connection; neither moves by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.timer: asyncio.TimerHandle | None = None
        self.timers = 0
        self._flush: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(self._loop, "call_later", self._call_later)

    def _call_later(
        self, seconds: float, leave: Callable[..., None], *told: Any
    ) -> asyncio.TimerHandle:
        self.timers += 1
        self._flush = lambda: leave(*told)
        self.timer = asyncio.TimerHandle(self.now + seconds, leave, told, self._loop)
        return self.timer

    async def idle(self, seconds: float) -> None:
        """Let the loop do nothing for so long; it flushes when it should."""
        await _turns(1)
        end = self.now + seconds
        if self.timer is not None and self.timer.when() <= end:
            self.now = max(self.now, self.timer.when())
            self.timer = None
            self._flush()
        self.now = end


async def _hot(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[FrameConnection, FakeTransport, Clock]:
    """Return a connection that has written turn after turn of a busy loop: a timer flushes it."""
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    clock = Clock(monkeypatch)
    for _ in range(5):
        connection.write(b"x")
        clock.now += 0.03
        await _turns(1)
    assert clock.timer is not None
    return connection, transport, clock


async def test_a_stream_that_was_hot_in_a_busy_loop_leaves_promptly_in_an_idle_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, transport, clock = await _hot(monkeypatch)
    for _ in range(20):
        connection.write(b"x")
        await clock.idle(0.025)
    transport.calls.clear()
    for number in range(1, 21):
        connection.write(b"x")
        await clock.idle(0.003)
        assert transport.calls == [b"x"] * number
        await clock.idle(0.022)


async def _lone(monkeypatch: pytest.MonkeyPatch) -> tuple[FrameConnection, FakeTransport]:
    """Return a connection that has written once, and nothing for a while."""
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    clock = Clock(monkeypatch)
    connection.write(b"first")
    await clock.idle(0.02)
    assert transport.calls == [b"first"]
    transport.calls.clear()
    return connection, transport


async def test_a_lone_write_leaves_before_the_turn_ends_with_what_was_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, transport = await _lone(monkeypatch)
    connection.queue(b"queued;")
    connection.write(b"head;", b"body")
    assert transport.calls == [b"queued;head;body"]
    connection.write(b"1;")  # it was not alone after all: these leave together
    connection.write(b"2")
    assert len(transport.calls) == 1
    await _turns(1)
    assert transport.calls[1:] == [b"1;2"]


async def test_a_lone_write_that_the_peer_does_not_take_makes_the_writer_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, _ = await _lone(monkeypatch)
    assert not connection.breath_due
    connection.write(BIG)
    assert connection.congested
    assert connection.breath_due


async def test_after_our_own_fin_a_write_fails(requester: ScriptedRequester) -> None:
    connection, home = await _connect(requester)
    connection.write(b"last")
    connection.half_close()
    assert await home.frame() is None
    assert home.received == b"last"
    with pytest.raises(PublishError):
        connection.write(b"more")
    connection.close()


async def test_a_writer_that_does_not_await_is_made_to_after_its_first_lone_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, _ = await _lone(monkeypatch)
    connection.write(b"x")
    assert not connection.breath_due
    later = time.monotonic() + 0.05
    monkeypatch.setattr(time, "monotonic", lambda: later)
    connection.write(b"x")
    assert connection.breath_due


async def test_a_lone_write_on_a_connection_that_is_gone_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, transport = await _lone(monkeypatch)
    connection.connection_lost(ConnectionResetError())
    with pytest.raises(PublishError) as lost:
        connection.write(b"x")
    assert lost.value.client_gone
    assert transport.calls == []


async def test_a_writer_that_never_awaits_holds_the_loop_no_longer_because_its_stream_is_hot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    clock = Clock(monkeypatch)
    held: list[int] = []  # writes before the loop turns
    for _ in range(20):
        held.append(0)
        while not connection.breath_due:
            connection.write(b"x")
            held[-1] += 1
            clock.now += 0.0009
        connection.flush()
        await _turns(1)
    assert held == [4] * 20
    assert clock.timer is None


async def test_a_hot_stream_that_is_flushed_in_between_has_one_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, transport, clock = await _hot(monkeypatch)
    connection.flush()
    transport.calls.clear()
    clock.timers = 0
    for item in (b"0", b"1", b"2"):
        connection.flush()
        connection.write(item)
    clock.now += 0.001
    await _turns(1)
    assert transport.calls == [b"0", b"1"]
    assert clock.timers == 1
    await clock.idle(0.05)
    assert transport.calls == [b"0", b"1", b"2"]


def _reset_by_peer(connection: FrameConnection) -> None:
    connection.connection_lost(ConnectionResetError("reset"))


@pytest.mark.parametrize("lose", [FrameConnection.abort, _reset_by_peer])
async def test_a_connection_that_is_lost_has_nothing_to_send_when_its_time_comes(
    monkeypatch: pytest.MonkeyPatch, lose: Callable[[FrameConnection], None]
) -> None:
    connection, transport, clock = await _hot(monkeypatch)
    assert clock.timer is not None
    transport.calls.clear()
    lose(connection)
    await clock.idle(0.05)
    assert clock.timer is None
    assert transport.calls == []
    kept = weakref.ref(connection)
    del connection, transport
    assert kept() is None


async def test_a_writer_waits_for_a_slow_peer_and_goes_on_when_it_reads(
    requester: ScriptedRequester,
) -> None:
    connection, peer = await _connect(requester)
    written = await _congest(connection)
    waiting = asyncio.create_task(connection.drain())
    await _turns()
    assert not waiting.done()
    for _ in range(written):
        frame = await peer.frame()
        assert frame is not None
        assert len(frame.data) == MIB
    await waiting
    assert not connection.congested
    connection.abort()


async def test_drain_all_waits_until_the_last_byte_is_in_the_kernel(
    requester: ScriptedRequester,
) -> None:
    connection, peer = await _connect(requester)
    written = await _congest(connection)
    waiting = asyncio.create_task(connection.drain_all())
    await _turns()
    assert not waiting.done()
    for _ in range(written):
        await peer.frame()
    await waiting
    connection.close()
    assert await connection.wait_closed(10)


async def test_after_drain_all_the_buffer_may_fill_again_before_the_writer_waits() -> None:
    connection, transport = FrameConnection(Recorder(), limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    await connection.drain_all()
    connection.write(b"x" * 200_000)
    assert not connection.congested
    connection.write(b"x" * 100_000)
    assert connection.congested


async def test_a_writer_is_held_back_even_if_writelines_forgets_to_pause_it() -> None:
    connection = FrameConnection(Recorder(), limits=FrameLimits())
    transport = FakeTransport(forgets_to_pause=True)  # Python 3.12.0 to 3.13.1
    transport.join(connection)
    connection.write(b"x" * 300_000)
    assert connection.congested


async def test_no_progress_for_send_timeout_is_a_failed_network(
    requester: ScriptedRequester,
) -> None:
    recorder = Recorder()
    connection, _ = await _connect(requester, recorder, send_timeout=0.05)
    await _congest(connection)
    with pytest.raises(PublishError, match=r"the peer took no bytes for 0\.05 s") as caught:
        await connection.drain()
    assert not caught.value.client_gone
    await recorder.closed.wait()
    assert recorder.error is caught.value
    with pytest.raises(PublishError) as again:
        connection.write(b"more")
    assert again.value is caught.value


async def test_progress_within_send_timeout_is_not_a_failure_until_it_ends() -> None:
    connection = FrameConnection(Recorder(), limits=FrameLimits(), send_timeout=0.01)
    unsent = [300_000, 200_000, 200_000, 100_000, 100_000, 100_000]
    transport = FakeTransport(unsent)
    transport.join(connection)
    connection.write(b"x" * 300_000)
    with pytest.raises(PublishError, match="took no bytes"):
        await connection.drain()
    assert transport.get_write_buffer_size() == 300_000  # all six were looked at


async def test_a_reset_means_that_the_client_is_gone(requester: ScriptedRequester) -> None:
    recorder = Recorder()
    connection, peer = await _connect(requester, recorder)
    peer.reset()
    await recorder.closed.wait()
    assert recorder.error is not None
    assert recorder.error.client_gone
    assert connection.lost is recorder.error
    with pytest.raises(PublishError) as caught:
        connection.write(b"x")
    assert caught.value is recorder.error
    with pytest.raises(PublishError):
        await connection.drain()


async def test_a_reset_wakes_a_writer_that_waits(requester: ScriptedRequester) -> None:
    connection, peer = await _connect(requester)
    await _congest(connection)
    waiting = asyncio.create_task(connection.drain())
    await _turns()
    peer.reset()
    with pytest.raises(PublishError) as caught:
        await waiting
    assert caught.value.client_gone


@pytest.mark.parametrize(
    ("error", "peer_done", "gone"),
    [
        (ConnectionResetError("reset"), False, True),
        (BrokenPipeError(), False, True),
        (TimeoutError("keep-alive"), False, False),
        (OSError("no route to host"), False, False),
        (OSError("no route to host"), True, True),
    ],
)
async def test_a_loss_is_the_clients_if_it_reset_or_had_finished(
    error: Exception, peer_done: bool, gone: bool
) -> None:
    recorder = Recorder()
    connection, transport = FrameConnection(recorder, limits=FrameLimits()), FakeTransport()
    transport.join(connection)
    if peer_done:
        connection.eof_received()
    connection.connection_lost(error)
    assert recorder.error is not None
    assert recorder.error.client_gone is gone
    assert str(error) in str(recorder.error)


async def test_a_half_close_is_told_once_and_writing_goes_on(requester: ScriptedRequester) -> None:
    recorder = Recorder()
    connection, peer = await _connect(requester, recorder)
    peer.half_close()
    await recorder.finished.wait()
    assert connection.peer_done
    assert connection.open
    connection.write(encode(b"", b"late"))
    assert await peer.frame() == TwoPartMessage(b"", b"late")
    assert recorder.finishes == 1
    connection.close()
    assert await connection.wait_closed(10)
    assert recorder.error is None


async def test_a_half_close_towards_a_peer_that_died_unseen_closes(
    requester: ScriptedRequester,
) -> None:
    recorder = Recorder()
    connection, peer = await _connect(requester, recorder)
    connection.pause_reading()
    await peer.close()
    connection.write(encode(b"", b"x"))  # nobody is there any more: it is answered with a reset
    connection.half_close()
    connection.resume_reading()
    await recorder.closed.wait()
    connection.half_close()
    assert not connection.open


async def test_nothing_can_be_written_before_a_connection_is_made_or_after_it_is_closed(
    requester: ScriptedRequester,
) -> None:
    unconnected = FrameConnection(Recorder(), limits=FrameLimits())
    for act in (unconnected.close, unconnected.abort, unconnected.reset, unconnected.flush):
        act()
    unconnected.pause_reading()
    unconnected.resume_reading()
    await unconnected.drain_all()
    with pytest.raises(PublishError, match="the connection is closed"):
        unconnected.write(b"x")
    connection, _ = await _connect(requester)
    connection.close()
    with pytest.raises(PublishError, match="the connection is closed") as caught:
        connection.write(b"x")
    assert caught.value.client_gone
    assert await connection.wait_closed(10)


async def test_close_flushes_what_was_written(requester: ScriptedRequester) -> None:
    connection, peer = await _connect(requester)
    connection.write(encode(b"", b"last"))
    connection.close()
    assert await peer.frame() == TwoPartMessage(b"", b"last")
    assert await peer.frame() is None


async def test_abort_drops_what_was_written(requester: ScriptedRequester) -> None:
    recorder = Recorder()
    connection, peer = await _connect(requester, recorder)
    connection.write(encode(b"", b"dropped"))
    connection.abort()
    assert await peer.frame() is None
    await recorder.closed.wait()
    assert recorder.error is None
    await connection.drain()


async def test_wait_closed_says_whether_it_closed_in_time(requester: ScriptedRequester) -> None:
    connection, peer = await _connect(requester)
    assert not await connection.wait_closed(0.01)
    peer.reset()
    assert await connection.wait_closed(10)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_vanished_peer_is_noticed_by_keep_alive_and_small_frames_are_not_delayed(
    monkeypatch: pytest.MonkeyPatch, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    monkeypatch.setattr("dialback.transport.connection._KEEPALIVE_AFTER", 0.0)

    async def options() -> list[int]:
        async with ScriptedRequester() as requester:
            connection = FrameConnection(Recorder(), limits=FrameLimits())
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(
                lambda: connection, "127.0.0.1", requester.port
            )
            named = transport.get_extra_info("socket")
            while not named.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0)
            found = [
                named.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                named.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                named.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            ]
            connection.abort()
            await connection.wait_closed(5)
            return found

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(options()) == [1, 1, 30]


def test_a_system_without_the_keep_alive_options_does_without() -> None:
    elsewhere = SimpleNamespace(TCP_KEEPCNT=6)
    assert keepalive_options(elsewhere) == [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, 6, 3),
    ]


# --- reading ------------------------------------------------------------------------------


async def test_frames_are_told_in_order_however_they_are_cut(requester: ScriptedRequester) -> None:
    recorder = Recorder()
    connection, peer = await _connect(requester, recorder)
    stream = STOP + encode(b"", b"data") + STOP
    for position in range(len(stream)):
        await peer.send(stream[position : position + 1])
    await peer.close()
    await recorder.finished.wait()
    stop = TwoPartMessage(b'"stop"')
    assert recorder.frames == [stop, TwoPartMessage(b"", b"data"), stop]
    connection.abort()


async def test_bytes_that_are_no_frames_are_told_once_and_nothing_more_is_read(
    requester: ScriptedRequester,
) -> None:
    recorder = Recorder()
    connection, peer = await _connect(requester, recorder, limits=SMALL_LIMITS)
    await peer.send(STOP + b"\xff" * 24 + STOP)
    await recorder.received.wait()
    await peer.send(STOP)
    await peer.close()
    await recorder.finished.wait()
    assert recorder.frames == [TwoPartMessage(b'"stop"')]
    assert [type(error) for error in recorder.failures] == [FrameTooLargeError]
    connection.abort()


@pytest.mark.parametrize(
    "end", [FrameConnection.close, FrameConnection.abort, FrameConnection.reset]
)
async def test_frames_behind_the_one_that_made_us_close_are_not_told(
    requester: ScriptedRequester, end: Callable[[FrameConnection], None]
) -> None:
    class Closing(Recorder):
        @override
        def frame_received(self, message: TwoPartMessage) -> None:
            super().frame_received(message)
            end(connection)

    recorder = Closing()
    connection, peer = await _connect(requester, recorder)
    await peer.send(STOP + STOP)
    await recorder.closed.wait()
    assert recorder.frames == [TwoPartMessage(b'"stop"')]


async def test_a_paused_connection_reads_nothing_until_it_is_resumed(
    requester: ScriptedRequester,
) -> None:
    recorder = Recorder()
    connection, peer = await _connect(requester, recorder)
    await _turns(2)
    connection.pause_reading()
    await peer.send(STOP)
    await _turns()
    assert recorder.frames == []
    connection.resume_reading()
    await recorder.received.wait()
    assert recorder.frames == [TwoPartMessage(b'"stop"')]
    connection.abort()


# --- on the loop that workers run on ------------------------------------------------------


def test_under_uvloop_a_slow_peer_holds_the_writer_back_and_a_reset_is_seen() -> None:
    async def main() -> bool:
        async with ScriptedRequester() as requester:
            recorder = Recorder()
            connection, peer = await _connect(requester, recorder)
            written = await _congest(connection)
            waiting = asyncio.create_task(connection.drain_all())
            for _ in range(written):
                await peer.frame()
            await waiting
            connection.reset()
            await recorder.closed.wait()
            return await peer.frame() is None

    loop_factory = cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main())


def test_under_uvloop_a_half_close_towards_a_peer_that_died_unseen_closes() -> None:
    async def main() -> None:
        async with ScriptedRequester() as requester:
            await test_a_half_close_towards_a_peer_that_died_unseen_closes(requester)

    loop_factory = cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
