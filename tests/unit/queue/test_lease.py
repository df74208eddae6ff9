import asyncio
import threading
import time

import nats.errors
import pytest
from nats.aio.client import Client
from typing_extensions import override

from dialback.errors import ServerUnavailableError
from dialback.queue.connection import ServerAddress
from dialback.queue.lease import Lease, LeaseKeeper
from dialback.queue.loop_clock import LoopClock
from support.black_hole import NobodyListens
from support.fake_jetstream import FakeJetStream

LIMIT = 30.0  # seconds; reached only by a test that fails


def keeper(url: str = "nats://127.0.0.1:1") -> LeaseKeeper:
    return LeaseKeeper(ServerAddress(url=url), name="t", ack_wait=1.0)


async def test_without_a_server_the_start_fails_and_leaves_no_thread() -> None:
    with NobodyListens() as nobody:
        leases = keeper(f"nats://{nobody.address}")
        with pytest.raises(ServerUnavailableError, match="no nats-server answers"):
            await leases.start()
        await leases.stop()
    assert "dialback-leases" not in [thread.name for thread in threading.enumerate()]


async def test_an_unexpected_error_at_the_start_is_raised_too() -> None:
    with pytest.raises(AttributeError):
        await LeaseKeeper(None, name="t", ack_wait=1.0).start()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_stopping_what_never_started_is_harmless() -> None:
    await keeper().stop()


def test_a_lease_is_kept_until_it_is_removed() -> None:
    leases = keeper()
    first = leases.add("$JS.ACK.1", lambda: None)
    second = leases.add("$JS.ACK.2", lambda: None)
    assert len(leases) == 2
    leases.remove(first)
    leases.remove(first)
    assert len(leases) == 1
    leases.remove(second)
    assert (len(leases), first.lost) == (0, False)


def test_a_lease_expires_without_the_thread_noticing() -> None:
    lease = Lease("$JS.ACK.1", lambda: None, ack_wait=2.0, confirmed=10.0)
    assert [lease.expired(now) for now in (10.0, 12.0, 12.5)] == [False, False, True]
    lease.confirmed = 11.0
    assert not lease.expired(12.5)
    lease.lost = True
    assert lease.expired(11.0)


def test_what_comes_while_the_loop_turns_is_as_old_as_the_last_turn() -> None:
    clock = LoopClock(0.0)
    for now in (0.5, 1.0, 1.5, 2.0):
        clock.turned(now)
    assert clock.read_after(2.25) == 2.0


def test_what_comes_after_a_standstill_is_as_old_as_the_standstill() -> None:
    clock = LoopClock(0.0)
    for now in (1.0, 2.0):
        clock.turned(now)
    assert clock.read_after(9.0) == 2.0  # handed over before the clock ticks again
    clock.turned(9.0)
    assert clock.read_after(9.1) == 2.0  # and after it
    clock.turned(9.5)
    assert clock.read_after(9.9) == 2.0
    clock.turned(10.0)
    clock.turned(10.5)
    assert clock.read_after(10.75) == 10.5


def test_standstills_in_a_row_are_one() -> None:
    clock = LoopClock(0.0)
    for now in (1.0, 2.0, 9.0, 9.5, 16.0):
        clock.turned(now)
    assert clock.read_after(16.1) == 2.0


def test_a_lease_is_counted_from_before_its_delivery() -> None:
    leases = keeper()
    before = time.monotonic()
    leases.loop_turned()
    after = time.monotonic()
    assert before - 1.0 <= leases.add("$JS.ACK.1", lambda: None).confirmed <= after
    asked = time.monotonic() + 5.0
    assert leases.add("$JS.ACK.2", lambda: None, asked=asked).confirmed == asked


def test_a_message_is_late_when_its_lease_may_end_before_a_renewal() -> None:
    leases = LeaseKeeper(ServerAddress(), name="t", ack_wait=3000.0)
    now = time.monotonic()
    leases._clock = LoopClock(now - 1990.0)  # pyright: ignore[reportPrivateUsage]
    assert not leases.came_late(0.0)
    leases._clock = LoopClock(now - 2010.0)  # pyright: ignore[reportPrivateUsage]
    assert leases.came_late(0.0)
    assert not leases.came_late(now)  # it was asked for just now


class Connecting:
    """A connect that ends only when it is cancelled, and then with an error or as told."""

    def __init__(self, client: Client | None = None) -> None:
        self.entered = threading.Event()
        self.cancelled = False
        self._client = client

    async def __call__(self, *_: object, **__: object) -> Client:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            if self._client is None:
                raise
        assert self._client is not None
        return self._client


@pytest.fixture
def connecting(monkeypatch: pytest.MonkeyPatch) -> Connecting:
    """Every connect hangs."""
    connect = Connecting()
    monkeypatch.setattr("dialback.queue.lease.connect", connect)
    return connect


async def ended(leases: LeaseKeeper) -> bool:
    """Whether the thread ends, nobody having stopped it."""
    renewer = leases._renewer  # pyright: ignore[reportPrivateUsage]
    assert renewer is not None
    await asyncio.to_thread(renewer.join, LIMIT)
    return not renewer.is_alive()


async def test_a_start_that_takes_too_long_fails_and_its_thread_ends(
    connecting: Connecting,
) -> None:
    leases = LeaseKeeper(ServerAddress(), name="t", ack_wait=1.0, within=0.01)
    with pytest.raises(ServerUnavailableError, match=r"did not connect in 0\.03 s"):
        await leases.start()
    assert await ended(leases)
    assert connecting.cancelled


async def test_the_thread_of_a_cancelled_start_ends(connecting: Connecting) -> None:
    leases = keeper()
    starting = asyncio.create_task(leases.start())
    await asyncio.to_thread(connecting.entered.wait, LIMIT)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await ended(leases)
    assert connecting.cancelled


async def test_a_stop_cuts_a_connect_short_and_the_start_fails(connecting: Connecting) -> None:
    leases = keeper()
    starting = asyncio.create_task(leases.start())
    await asyncio.to_thread(connecting.entered.wait, LIMIT)
    await leases.stop()
    assert await ended(leases)
    with pytest.raises(ServerUnavailableError, match="stopped before it was connected"):
        await starting


async def test_a_connect_that_succeeds_all_the_same_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nats-py may lose a cancellation."""
    client = Client()
    connect = Connecting(client)
    closed: list[Client] = []

    async def close(client: Client) -> None:
        closed.append(client)

    monkeypatch.setattr("dialback.queue.lease.connect", connect)
    monkeypatch.setattr("dialback.queue.lease.close", close)
    leases = keeper()
    starting = asyncio.create_task(leases.start())
    await asyncio.to_thread(connect.entered.wait, LIMIT)
    await leases.stop()
    await starting
    assert await ended(leases)
    assert closed == [client]


class LateThread(LeaseKeeper):
    """Its thread has begun, and its event loop runs only when the gate is opened."""

    def __init__(self) -> None:
        super().__init__(ServerAddress(), name="t", ack_wait=1.0)
        self.gate = threading.Event()

    @override
    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self.gate.wait(LIMIT)
        super()._run(loop)


async def test_a_stop_before_the_threads_loop_runs_is_heard(connecting: Connecting) -> None:
    leases = LateThread()
    starting = asyncio.create_task(leases.start())
    stopping = asyncio.create_task(leases.stop())
    await asyncio.sleep(0)  # both have done what they do at once
    leases.gate.set()
    await stopping
    assert await ended(leases)
    with pytest.raises(ServerUnavailableError, match="stopped before it was connected"):
        await starting


async def test_a_thread_that_does_not_end_in_time_is_told(
    connecting: Connecting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dialback.queue.lease._STOP_TIMEOUT", 0.0)
    leases = LateThread()
    starting = asyncio.create_task(leases.start())
    await asyncio.sleep(0)
    await leases.stop()
    assert caplog.messages == ["the lease thread does not end"]
    leases.gate.set()
    assert await ended(leases)
    with pytest.raises(ServerUnavailableError):
        await starting


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (nats.errors.TimeoutError(), []),
        (asyncio.InvalidStateError(), []),
        (OSError("broken pipe"), []),
        (ValueError("a fault of ours"), ["a renewal failed"]),
    ],
)
async def test_a_renewal_that_fails_is_counted_and_confirms_nothing(
    error: Exception, logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    late: list[None] = []
    leases = LeaseKeeper(
        ServerAddress(), name="t", ack_wait=30.0, on_late=lambda: late.append(None)
    )
    lease = leases.add("$JS.ACK.1", lambda: None)
    before = lease.confirmed
    server = FakeJetStream(answers=[error])
    await leases._renew(server.client, lease)  # pyright: ignore[reportPrivateUsage]
    assert (len(late), lease.confirmed, lease.lost) == (1, before, False)
    assert caplog.messages == logged


class Reported:
    """A supervisor's table: what is held, and each word about it."""

    def __init__(self) -> None:
        self.leases: dict[str, float] = {}
        self.words: list[str] = []

    def held(self, reply: str, confirmed: float) -> None:
        self.words.append(f"held {reply}")
        self.leases[reply] = confirmed

    def released(self, reply: str) -> None:
        self.words.append(f"released {reply}")
        del self.leases[reply]


async def test_what_is_held_is_reported_from_its_delivery_to_its_end() -> None:
    report = Reported()
    leases = LeaseKeeper(ServerAddress(), name="t", ack_wait=30.0, report=report)
    first = leases.add("$JS.ACK.1", lambda: None)
    leases.add("$JS.ACK.2", lambda: None)
    assert report.leases["$JS.ACK.1"] == first.confirmed
    leases.remove(first)
    leases.remove(first)
    assert list(report.leases) == ["$JS.ACK.2"]
    assert report.words == ["held $JS.ACK.1", "held $JS.ACK.2", "released $JS.ACK.1"]


def test_a_lease_that_was_replaced_takes_nothing_from_its_successor() -> None:
    report = Reported()
    leases = LeaseKeeper(ServerAddress(), name="t", ack_wait=1.0, report=report)
    first = leases.add("$JS.ACK.1", lambda: None)
    second = leases.add("$JS.ACK.1", lambda: None)  # a restarted server repeats a reply subject
    leases.remove(first)
    assert (len(leases), list(report.leases)) == (1, ["$JS.ACK.1"])
    leases.remove(second)
    assert (len(leases), list(report.leases)) == (0, [])
