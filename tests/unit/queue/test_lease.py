import threading

import pytest

from dialback.errors import ServerUnavailableError
from dialback.queue.connection import ServerAddress
from dialback.queue.lease import Lease, LeaseKeeper
from support.black_hole import NobodyListens


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
