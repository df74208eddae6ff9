import asyncio
import socket
import subprocess
import sys
from collections.abc import Generator

import pytest

from dialback.errors import ConfigError
from dialback.held_leases import HeldLeases
from dialback.supervised import SupervisorLink

LIMIT = 30.0


@pytest.fixture
def pair() -> Generator[tuple[socket.socket, socket.socket]]:
    """The supervisor's end, and the process's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def take(ours: socket.socket, leases: HeldLeases) -> None:
    """Read all that there is."""
    try:
        while data := ours.recv(65536):
            leases.feed(data)
    except BlockingIOError:
        pass


def held(leases: HeldLeases) -> list[str]:
    return [lease.reply for lease in leases.alive(0.0)]


def test_the_supervisor_knows_what_is_held(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    link, leases = SupervisorLink(theirs), HeldLeases(30.0)
    link.ready()
    link.held("a", 1.0)
    link.held("b", 1.0)
    link.released("a")
    take(ours, leases)
    assert (held(leases), leases.ready) == (["b"], True)


def test_a_clean_end_leaves_nothing_to_hand_back(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    link, leases = SupervisorLink(theirs), HeldLeases(30.0)
    link.held("a", 1.0)
    link.close()
    take(ours, leases)
    assert held(leases) == []


def test_a_full_link_holds_nobody_up_and_leaves_no_wrong_knowledge(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    link, leases = SupervisorLink(theirs), HeldLeases(30.0)
    link.held("settled meanwhile", 1.0)
    for number in range(20_000):  # far more than the socket takes
        link.held(f"filler-{number}", 1.0)
        link.released(f"filler-{number}")
    link.released("settled meanwhile")  # dropped
    take(ours, leases)
    assert "settled meanwhile" in held(leases)
    link.held("b", 1.0)
    take(ours, leases)
    assert held(leases) == ["b"]


def test_reports_to_a_supervisor_that_is_gone_go_nowhere(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    link = SupervisorLink(theirs)
    ours.close()
    link.held("a", 1.0)
    link.released("a")
    link.close()


async def test_the_end_of_the_supervisor_is_told_once(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    link, gone, calls = SupervisorLink(theirs), asyncio.Event(), 0

    def told() -> None:
        nonlocal calls
        calls += 1
        gone.set()

    with link.watched(told):
        ours.close()
        async with asyncio.timeout(LIMIT):
            await gone.wait()
        await asyncio.sleep(0)
    assert calls == 1


async def test_a_supervisor_that_dies_with_unread_reports_is_gone_too(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    link, gone = SupervisorLink(theirs), asyncio.Event()
    link.held("a", 1.0)
    with link.watched(gone.set):
        ours.close()  # the kernel answers with a reset, and not with an end
        async with asyncio.timeout(LIMIT):
            await gone.wait()


def test_what_the_engine_starts_does_not_inherit_the_link(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.set_inheritable(True)
    link = SupervisorLink.inherited(theirs.detach())
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
    )
    with child:
        link.close()
        ours.setblocking(True)
        ours.settimeout(LIMIT)
        while ours.recv(65536):
            pass  # the end is there though that process lives
        assert child.poll() is None
        child.communicate(b"\n")


def test_a_number_that_is_no_link_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match="--supervised-by 987 is no link"):
        SupervisorLink.inherited(987)
