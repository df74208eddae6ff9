"""Kept connections whose requester leaves, or whose last stream is not forgotten by everybody."""

import asyncio
import contextlib

import pytest

from dialback.errors import DialError, PublishError, StreamInterrupted
from dialback.outcomes import HandedBack, Outcome
from dialback.transport import incoming
from dialback.transport.address import Address
from dialback.transport.items import encode_final, encode_item
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import (
    ResumeOffer,
)
from dialback.transport.response_stream import (
    EndState,
    WorkerEvent,
)
from dialback.transport.two_part import TwoPartMessage, encode
from support.frames import request_payload, tcp_info
from support.ingress_rig import IngressRig, finished
from support.kept_connections import (
    FRESH,
    JSON,
    KEEPING,
    NEXT,
    PATIENT,
    RELEASE,
    Ends,
    Heard,
    OneItem,
    released,
    rest,
    reusing,
    serve,
)
from support.listening import address_of, has_connections
from support.scripted_requester import CallHome, ScriptedRequester
from support.scripted_worker import FINAL, PROLOGUE, SENTINEL, dialling, item


async def test_a_connection_that_its_requester_has_closed_is_not_taken(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "IDLE_TIMEOUT", 0.001)
    sender = await ends.kept()
    assert await sender.connection.wait_closed(10)
    await has_connections(ends.listener, 0)
    monkeypatch.undo()
    again = [await ends.stream(number) for number in range(2)]
    assert [sender.dials for sender in again] == [1, 0]


async def test_the_requesters_time_ends_with_the_next_handshake(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "IDLE_TIMEOUT", 0.05)
    receiver, bystander = ends.register(), ends.register()
    whole = (PROLOGUE, item(1), FINAL, SENTINEL)
    address = address_of(ends.listener)
    async with dialling(address, reusing(receiver.subject), *whole) as worker:
        assert await worker.frame() == TwoPartMessage(b'{"release":1}')
        serving = ends.register()
        await worker.send(reusing(serving.subject) + PROLOGUE + item(1))
        assert await serving.next_item() == 1
        async with dialling(address, reusing(bystander.subject), *whole) as idle:
            assert await idle.frame() == TwoPartMessage(b'{"release":1}')
            assert await idle.frame() is None, "its time has come, later than the first one's"
        await worker.send(item(2) + FINAL + SENTINEL)
        assert await rest(serving) == [2]
        assert await worker.frame() == TwoPartMessage(b'{"release":1}')


async def test_a_listener_that_is_closed_closes_what_is_kept() -> None:
    listener = ResponseListener()
    await listener.start()
    ends = Ends(listener)
    first, second = ends.register(), ends.register()
    senders = [await ends.dial(receiver) for receiver in (first, second)]
    for sender in senders:
        await serve(sender, 1)
    assert listener.connections == 2
    await listener.close()
    assert listener.connections == 0
    for sender in senders:
        assert await sender.connection.wait_closed(10)
        assert sender.connection.lost is None, "a FIN, and no reset"
    with pytest.raises(DialError) as caught:
        await ends.dialer.dial(address_of(listener), "s", offer=FRESH)
    assert caught.value.gone


async def test_a_listener_that_is_closed_before_the_sentinel_still_says_that_all_has_arrived() -> (
    None
):
    """On a connection that was kept its FIN would prove nothing."""
    listener = ResponseListener()
    await listener.start()
    ends = Ends(listener)
    await ends.kept()
    receiver = ends.register()
    sender = await ends.dial(receiver)
    sender.write_prologue()
    sender.write_final(encode_final(JSON))
    sender.connection.flush()
    while receiver.end is None:  # noqa: ASYNC110 -- it is asked for no item, so it wakes nobody
        await asyncio.sleep(0)
    finishing = asyncio.create_task(sender.finish())  # its sentinel leaves when the loop turns
    await listener.close()
    await finishing
    assert (receiver.end, sender.dials) == (EndState.COMPLETE, 0)
    assert (sender.released, sender.peer_closed, sender.left_early) == (True, True, False)
    assert (sender.killed, sender.lost) == (False, None)
    assert await sender.connection.wait_closed(10)
    ends.dialer.close()


async def test_a_dialler_that_is_closed_closes_what_is_kept(ends: Ends) -> None:
    await ends.kept()
    ends.dialer.close()
    await has_connections(ends.listener, 0)
    ends.dialer.close()
    assert (await ends.stream("after")).dials == 1


@pytest.mark.parametrize("offer", [FRESH, NEXT], ids=["fresh", "asks"])
@pytest.mark.parametrize("leave", ["half-close", "reset"])
async def test_a_handshake_that_crosses_the_requesters_close_is_a_lost_connection(
    requester: ScriptedRequester, leave: str, offer: ResumeOffer
) -> None:
    address = Address("127.0.0.1", requester.port)
    dialer, _, home = await released(requester)
    home.half_close() if leave == "half-close" else home.reset()
    sender = await dialer.dial(address, "s", offer=offer)  # the loop has not turned
    assert sender.dials == 0
    if not offer.fresh:
        with pytest.raises(PublishError):
            await sender.resume_answer(PATIENT, JSON)
    else:
        with contextlib.suppress(PublishError):
            await serve(sender, 1)
        assert not sender.released
        proven = sender.peer_closed and not sender.left_early
        assert not proven, "a close from before the handshake says nothing of the stream"
    sender.abort()
    assert await sender.connection.wait_closed(10)
    again = await dialer.dial(address, "s", offer=FRESH)
    assert again.dials == 1
    again.abort()
    assert await again.connection.wait_closed(10)


async def _served(
    requester: ScriptedRequester,
) -> tuple[IngressRig, bytes, CallHome, list[TwoPartMessage]]:
    """Serve a request, whose connection is kept; return what comes next, and its frames."""
    rig = IngressRig(OneItem(), dial=KEEPING)
    payload = request_payload(
        requester.address, {"a": 1}, info=tcp_info(requester.address, resumable=1, reuse=1)
    )
    serving = rig.start(payload)
    home = await requester.connection()
    frames = await home.frames()
    await home.send(RELEASE)
    assert finished(await serving).outcome is Outcome.COMPLETED
    return rig, payload, home, frames


@pytest.mark.parametrize("leave", ["half-close", "reset"])
async def test_a_request_whose_handshake_crosses_the_close_is_handed_back(
    requester: ScriptedRequester, leave: str
) -> None:
    """Another requester may listen there by now: what the old one's close says is not of this."""
    rig, payload, home, _ = await _served(requester)
    crossing = rig.start(payload)
    home.half_close() if leave == "half-close" else home.reset()
    if leave == "half-close":
        await home.frames()
    assert isinstance(await crossing, HandedBack)
    rig.ingress.close()


async def test_a_request_whose_whole_stream_crosses_the_close_is_handed_back(
    requester: ScriptedRequester,
) -> None:
    """The requester's FIN may have been under way before the handshake: only a release counts."""
    rig, payload, home, first = await _served(requester)
    serving = rig.start(payload)
    assert await home.frames() == first, "to the sentinel, on the connection that was kept"
    home.half_close()
    assert isinstance(await serving, HandedBack)
    assert await home.frame() is None, "it is not kept"
    assert not requester.dialled
    rig.ingress.close()


async def test_a_redelivery_dials_and_leaves_no_connection_behind(
    requester: ScriptedRequester,
) -> None:
    """Only a dial can tell whether its requester is gone; and many come at the same time."""
    rig, payload, _, _ = await _served(requester)
    serving = rig.start(payload, number=2)
    again = await requester.connection()
    said = await again.frame()
    assert said is not None
    assert b'"reuse"' not in said.header
    await again.send(encode(b'{"resume":0,"fruitless":0}'))
    await again.frames()
    again.half_close()
    ended = finished(await serving)
    assert (ended.outcome, ended.dials) == (Outcome.COMPLETED, 1)
    rig.ingress.close()


@pytest.mark.parametrize("leave", ["stop", "kill", "fail", "interrupt"])
async def test_what_the_caller_of_a_stream_that_is_over_does_never_reaches_the_next_one(
    ends: Ends, leave: str
) -> None:
    first, second = ends.register(), ends.register()
    await serve(await ends.dial(first), 1)
    sender = await ends.dial(second)
    assert sender.dials == 0
    heard = Heard(sender)
    sender.write_prologue()
    sender.connection.flush()
    while not second.connected:  # noqa: ASYNC110 -- the receiver has no event for it
        await asyncio.sleep(0)
    match leave:
        case "fail":
            first.fail(StreamInterrupted(1, "too late"))
        case "interrupt":
            first.interrupt("too late")
        case _:
            getattr(first, leave)()
    second.stop()  # behind it on the same connection
    assert await heard.first() is WorkerEvent.STOP
    assert (heard.events, sender.killed) == ([WorkerEvent.STOP], False)
    sender.write_item(encode_item(2, JSON))
    sender.write_end(encode_final(JSON))
    await sender.finish()
    assert (await rest(first), await rest(second)) == ([1], [2])


async def test_a_stop_that_crosses_the_end_does_not_stop_the_next_stream(ends: Ends) -> None:
    first, second = ends.register(), ends.register()
    sender = await ends.dial(first)
    sender.write_prologue()
    sender.write_item(encode_item(1, JSON))
    sender.connection.flush()
    assert await first.next_item() == 1
    sender.write_end(encode_final(JSON))
    first.stop()  # the end is under way
    await sender.finish()
    assert (first.end, sender.released) == (EndState.COMPLETE, True)
    following = await ends.dial(second)
    assert following.dials == 0
    await serve(following, 2)
    assert (following.stopped, following.killed) == (False, False)
    assert await rest(second) == [2]


async def test_what_the_worker_of_a_stream_that_is_over_does_never_reaches_the_next_one(
    ends: Ends,
) -> None:
    first = await ends.kept()
    receiver = ends.register()
    sender = await ends.dial(receiver)
    first.abort()
    first.end_linger()
    await serve(sender, 1, 2)
    assert sender.dials == 0
    assert await rest(receiver) == [1, 2]
    assert (first.lost, first.killed, first.stopped) == (None, False, False)


async def test_a_connection_that_is_lost_is_lost_to_the_stream_that_has_it(ends: Ends) -> None:
    first, second = ends.register(), ends.register()
    before = await ends.dial(first)
    heard_before = Heard(before)
    await serve(before, 1)
    sender = await ends.dial(second)
    heard = Heard(sender)
    sender.write_prologue()
    sender.write_item(encode_item(2, JSON))
    sender.connection.flush()
    assert await second.next_item() == 2
    second.kill()
    assert await heard.first() is WorkerEvent.KILL
    sender.abort()
    assert await sender.connection.wait_closed(10)
    assert (heard_before.events, before.lost, before.killed) == ([], None, False)
    assert await rest(first) == [1]
    assert (first.end, first.interruptions) == (EndState.COMPLETE, 0)
