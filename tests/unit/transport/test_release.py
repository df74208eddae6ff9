"""The release: when it counts, and what comes with it."""

import asyncio

import pytest

from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.dial import Dialer
from dialback.transport.dynamo_errors import refusal_of
from dialback.transport.items import encode_final
from dialback.transport.messages import (
    ResumeOffer,
)
from dialback.transport.response_stream import (
    WorkerEnd,
    WorkerEvent,
    WorkerState,
)
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import PREFIX, TwoPartMessage, encode
from support.kept_connections import (
    FRESH,
    JSON,
    KEEPING,
    RELEASE,
    Heard,
    released,
    serve,
)
from support.scripted_requester import KILL, STOP, CallHome, ScriptedRequester


def _worker_end(state: WorkerState, *, reuse: bool = True) -> WorkerEnd:
    """A worker's end in a state on the way of a whole stream."""
    end = WorkerEnd()
    if state is WorkerState.DIALLED:
        return end
    asks = state is WorkerState.OFFERED
    end.handshake("s", ResumeOffer(1, 5, fresh=not asks, reuse=reuse))
    if state in (WorkerState.OFFERED, WorkerState.OPEN):
        return end
    end.prologue()
    if state is WorkerState.STOPPING:
        end.advance(WorkerEvent.STOP)
    if state in (WorkerState.FINISHING, WorkerState.LINGER):
        end.advance(WorkerEvent.FINAL)
        end.in_order = True
    if state is WorkerState.LINGER:
        end.advance(WorkerEvent.SENTINEL)
    assert end.state is state
    return end


RELEASED = TwoPartMessage(b'{"release":1}')


@pytest.mark.parametrize(
    "state",
    [
        WorkerState.DIALLED,
        WorkerState.OFFERED,
        WorkerState.OPEN,
        WorkerState.STREAMING,
        WorkerState.STOPPING,
    ],
    ids=lambda state: str(state.value),
)
def test_a_release_before_the_final_is_a_violation(state: WorkerState) -> None:
    end = _worker_end(state)
    assert end.receive(RELEASED) is WorkerEvent.VIOLATION
    assert end.state is WorkerState.ABORTED


@pytest.mark.parametrize("state", [WorkerState.FINISHING, WorkerState.LINGER])
def test_a_release_at_the_end_says_that_everything_has_arrived(state: WorkerState) -> None:
    end = _worker_end(state)
    assert end.receive(RELEASED) is WorkerEvent.RELEASE
    assert end.state is WorkerState.LINGER
    assert end.receive(TwoPartMessage(b' { "release" : 1 } ')) is WorkerEvent.RELEASE


def test_a_release_for_a_worker_that_announced_nothing_is_a_violation() -> None:
    end = _worker_end(WorkerState.FINISHING, reuse=False)
    assert end.receive(RELEASED) is WorkerEvent.VIOLATION
    assert end.state is WorkerState.ABORTED
    plain = WorkerEnd()
    plain.handshake("s")
    plain.prologue()
    plain.advance(WorkerEvent.FINAL)
    assert plain.receive(RELEASED) is WorkerEvent.VIOLATION
    assert plain.state is WorkerState.ABORTED
    lingering = _worker_end(WorkerState.LINGER, reuse=False)
    assert lingering.receive(RELEASED) is WorkerEvent.VIOLATION
    assert lingering.state is WorkerState.LINGER, "as ever at the end"


@pytest.mark.parametrize(
    "message",
    [
        TwoPartMessage(b'{"release":0}'),
        TwoPartMessage(b'{"release":2}'),
        TwoPartMessage(b'{"release":-1}'),
        TwoPartMessage(b'{"release":true}'),
        TwoPartMessage(b'{"release":"1"}'),
        TwoPartMessage(b'{"release":1}', b"data"),
        TwoPartMessage(b"", b'{"release":1}'),
        TwoPartMessage(b'"release"'),
        TwoPartMessage(b'{"released":1}'),
        TwoPartMessage(b'{"release":1'),
        TwoPartMessage(b"\xff"),
        TwoPartMessage(b"[" * 60_000),
    ],
    ids=lambda message: repr(message.header[:20] + message.data),
)
def test_what_is_no_release_is_a_violation(message: TwoPartMessage) -> None:
    end = _worker_end(WorkerState.FINISHING)
    assert end.receive(message) is WorkerEvent.VIOLATION
    assert end.state is WorkerState.ABORTED


async def _scripted(
    requester: ScriptedRequester, offer: ResumeOffer | None = FRESH
) -> tuple[ResponseSender, CallHome]:
    dialer = Dialer(CallHomePolicy(), KEEPING)
    sender = await dialer.dial(Address("127.0.0.1", requester.port), "s", offer=offer)
    sender.connection.flush()
    home = await requester.connection()
    await home.frame()
    return sender, home


@pytest.mark.parametrize("part", ["open", "streaming", "stopping", "final"])
async def test_a_release_before_the_sentinel_is_queued_kills_the_stream(
    requester: ScriptedRequester, part: str
) -> None:
    sender, home = await _scripted(requester)
    if part != "open":
        sender.write_prologue()
    if part == "stopping":
        stopped = Heard(sender)
        await home.send(STOP)
        assert await stopped.first() is WorkerEvent.STOP
    if part == "final":
        sender.write_final(encode_final(JSON))
    heard = Heard(sender)
    heard.events.clear()
    await home.send(RELEASE)
    home.half_close()
    while not sender.connection.peer_done:  # noqa: ASYNC110 -- the sender has no event for it
        await asyncio.sleep(0)
    assert heard.events == [WorkerEvent.VIOLATION]
    assert (sender.killed, sender.released) == (True, False)
    sender.abort()
    assert await sender.connection.wait_closed(10)


@pytest.mark.parametrize("offer", [None, ResumeOffer(1, 5, fresh=True)], ids=["plain", "no reuse"])
async def test_a_release_for_a_worker_that_keeps_nothing_kills_the_stream(
    requester: ScriptedRequester, offer: ResumeOffer | None
) -> None:
    sender, home = await _scripted(requester, offer)
    sender.write_prologue()
    sender.write_end(encode_final(JSON))
    heard = Heard(sender)
    await home.send(RELEASE)
    assert await heard.first() is WorkerEvent.VIOLATION
    assert (sender.killed, sender.released) == (True, False)
    sender.abort()
    assert await sender.connection.wait_closed(10)


@pytest.mark.parametrize("end", ["refusal", "hand-over"])
async def test_a_release_of_a_stream_that_has_no_final_keeps_nothing(
    requester: ScriptedRequester, end: str
) -> None:
    sender, home = await _scripted(requester)
    if end == "refusal":
        sender.write_refusal(refusal_of(ValueError("no")))
    else:
        sender.write_prologue()
    finishing = asyncio.create_task(sender.finish())
    await home.frames()
    await home.send(RELEASE)
    home.half_close()
    await finishing
    assert not sender.released
    assert await sender.connection.wait_closed(10)


async def test_a_release_that_comes_before_this_end_knows_that_all_has_left_keeps_it(
    requester: ScriptedRequester,
) -> None:
    dialer = Dialer(CallHomePolicy(), KEEPING)
    address = Address("127.0.0.1", requester.port)
    sender = await dialer.dial(address, "s", offer=FRESH)
    sender.write_prologue()
    sender.write_end(encode_final(JSON))  # and finish() comes only later
    home = await requester.connection()
    await home.frames()
    await home.send(RELEASE)
    while not sender.released:  # noqa: ASYNC110 -- the sender has no event for it
        await asyncio.sleep(0)
    await sender.finish()
    assert not sender.killed
    again = await dialer.dial(address, "s", offer=FRESH)
    assert (again.dials, again.connection) == (0, sender.connection)
    again.abort()
    assert await again.connection.wait_closed(10)


@pytest.mark.parametrize("behind", [b"\xff" * 24, PREFIX.pack(65537, 0, 0)])
async def test_a_connection_that_reads_no_more_is_not_kept(
    requester: ScriptedRequester, behind: bytes
) -> None:
    """Garbage in one segment with the release is read before the connection is kept."""
    dialer, sender, _ = await released(requester, behind)
    again = await dialer.dial(Address("127.0.0.1", requester.port), "s", offer=FRESH)
    again.abort()
    assert again.dials == 1, "it would hear neither an answer nor a kill"
    assert await sender.connection.wait_closed(10)


@pytest.mark.parametrize("behind", [STOP, KILL, encode(), encode(b'{"superseded":2}')])
async def test_what_comes_behind_a_release_is_not_of_the_next_stream(
    requester: ScriptedRequester, behind: bytes
) -> None:
    dialer, _, home = await released(requester, behind)
    again = await dialer.dial(Address("127.0.0.1", requester.port), "s", offer=FRESH)
    heard = Heard(again)
    serving = asyncio.create_task(serve(again, 2))
    if again.dials:
        home = await requester.connection()
    await home.frames()
    await home.send(RELEASE)
    await serving
    assert (heard.events, again.killed, again.stopped) == ([], False, False)
    dialer.close()
    assert await again.connection.wait_closed(10)
