import asyncio
import threading
import time

import nats.errors
import pytest
from nats.aio.client import Client

from dialback.errors import ServerUnavailableError
from dialback.queue.connection import ServerAddress
from dialback.queue.lease import Lease, LeaseKeeper
from dialback.queue.loop_clock import LoopClock
from support.black_hole import NobodyListens
from support.fake_jetstream import FakeJetStream


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


async def test_a_start_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    async def slow(*_: object, **__: object) -> Client:
        await asyncio.to_thread(gate.wait)
        raise ServerUnavailableError("at last")

    monkeypatch.setattr("dialback.queue.lease.connect", slow)
    leases = LeaseKeeper(ServerAddress(), name="t", ack_wait=1.0, within=0.01)
    with pytest.raises(ServerUnavailableError, match=r"did not connect in 0\.03 s"):
        await leases.start()
    gate.set()
    await leases.stop()
    assert "dialback-leases" not in [thread.name for thread in threading.enumerate()]


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
