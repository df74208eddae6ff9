"""What is on the wire when a connection is kept, and when it is not."""

import asyncio

import orjson
import pytest

from dialback.outcomes import Outcome
from dialback.request import Request
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.line import Resumable
from dialback.transport.messages import (
    ResumeOffer,
    TcpConnectionInfo,
    decode_request_control,
    encode_tcp_info,
)
from dialback.transport.resume_frames import RELEASE_FRAME
from dialback.transport.two_part import TwoPartMessage, decode, encode
from support.frames import request_payload, tcp_info
from support.ingress_rig import IngressRig, finished
from support.kept_connections import (
    FRESH,
    KEEPING,
    NEXT,
    OFFERED,
    PATIENT,
    RELEASE,
    Ends,
    OneItem,
    rest,
    reusing,
    said_to,
    serve,
)
from support.listening import address_of, has_connections
from support.resumable_worker import offering
from support.scripted_requester import CallHome, ScriptedRequester
from support.scripted_worker import FINAL, PROLOGUE, SENTINEL, dialling, handshake, item


@pytest.mark.parametrize(
    ("offer", "document"),
    [
        (
            FRESH,
            OFFERED % b'1,"epoch":5,"fresh":1,"reuse":1',
        ),
        (
            NEXT,
            OFFERED % b'2,"epoch":5,"reuse":1',
        ),
        (
            ResumeOffer(1, 5, unable=True, fresh=True, reuse=True),
            OFFERED % b'1,"epoch":5,"unable":1,"fresh":1,"reuse":1',
        ),
        (
            ResumeOffer(1, 5, fresh=True),
            OFFERED % b'1,"epoch":5,"fresh":1',
        ),
        (None, b'{"subject":"s","stream_type":"response"}'),
    ],
)
async def test_the_handshake_says_last_that_the_connection_is_kept(
    requester: ScriptedRequester, offer: ResumeOffer | None, document: bytes
) -> None:
    dialer = Dialer(CallHomePolicy(), KEEPING)
    sender = await dialer.dial(Address("127.0.0.1", requester.port), "s", offer=offer)
    sender.connection.flush()  # a fresh one would leave with what the engine says
    home = await requester.connection()
    assert await home.frame() == TwoPartMessage(document)
    assert bytes(home.received) == encode(document)
    sender.abort()
    assert await sender.connection.wait_closed(10)


async def test_the_second_streams_bytes_are_those_of_the_first(
    requester: ScriptedRequester,
) -> None:
    dialer = Dialer(CallHomePolicy(), KEEPING)
    home: CallHome | None = None
    seen: list[bytes] = []
    for number in range(3):
        sender = await dialer.dial(Address("127.0.0.1", requester.port), "s", offer=FRESH)
        serving = asyncio.create_task(serve(sender, "same"))
        home = home or await requester.connection()
        await home.frames()
        seen.append(bytes(home.received))
        home.received.clear()
        await home.send(RELEASE)
        await serving
        assert sender.dials == (0 if number else 1)
    assert seen == [reusing("s") + PROLOGUE + item("same") + FINAL + SENTINEL] * 3
    assert not requester.dialled
    dialer.close()
    assert home is not None
    assert await home.frame() is None


async def test_a_stream_that_has_arrived_is_answered_with_a_release_and_nothing_else(
    ends: Ends,
) -> None:
    assert RELEASE_FRAME == RELEASE
    receiver, other = ends.register(), ends.register()
    async with dialling(
        address_of(ends.listener), reusing(receiver.subject), PROLOGUE, item(1), FINAL, SENTINEL
    ) as worker:
        assert await worker.frame() == TwoPartMessage(b'{"release":1}')
        await worker.send(reusing(other.subject) + PROLOGUE + FINAL + SENTINEL)
        assert await worker.frame() == TwoPartMessage(b'{"release":1}')
        assert bytes(worker.received) == RELEASE * 2
        worker.half_close()
        assert await worker.frame() is None
        await has_connections(ends.listener, 0)
    assert (await rest(receiver), await rest(other)) == ([1], [])


def test_the_info_document_says_last_that_the_connection_may_be_kept() -> None:
    plain = '{"address":"h:1","subject":"s","context":"r","stream_type":"response"'
    for resume, added in ((Resumable(timeout=1.0), ',"resumable":1,"reuse":1}'), (None, "}")):
        request = Request.prepare(
            "a.b.c",
            {},
            timeout=60.0,
            deadline=600.0,
            lane="normal",
            codec="json",
            request_id="r",
            metadata=None,
            headers=None,
            context=None,
            resume=resume,
        )
        message = decode(request.payload("s", "h:1"))
        assert decode_request_control(message.header).connection_info.info == plain + added
    info = TcpConnectionInfo("h:1", "s", "r", "response", resumable=1, reuse=0)
    assert encode_tcp_info(info).info == plain + ',"resumable":1}'


@pytest.mark.parametrize(
    ("announced", "dial"),
    [
        ({"resumable": 1}, KEEPING),
        ({"resumable": 1, "reuse": 0}, KEEPING),
        ({"reuse": 1}, KEEPING),
        ({}, KEEPING),
        ({"resumable": 1, "reuse": 1}, DialSettings(attempts=1, linger=PATIENT)),
    ],
    ids=str,
)
async def test_a_worker_says_nothing_of_it_unless_both_ends_keep_connections(
    requester: ScriptedRequester, announced: dict[str, int], dial: DialSettings
) -> None:
    rig = IngressRig(OneItem(), dial=dial)
    info = tcp_info(requester.address, **announced)
    for _ in range(2):
        serving = rig.start(request_payload(requester.address, {"a": 1}, info=info))
        home = await requester.connection()
        shaken = await home.frame()
        assert shaken is not None
        assert "reuse" not in orjson.loads(shaken.header)
        await home.frames()
        await home.close()
        ending = finished(await serving)
        assert (ending.outcome, ending.dials) == (Outcome.COMPLETED, 1)


async def test_a_worker_says_it_when_both_ends_keep_connections(
    requester: ScriptedRequester,
) -> None:
    rig = IngressRig(OneItem(), dial=KEEPING)
    info = tcp_info(requester.address, resumable=1, reuse=1)
    home: CallHome | None = None
    for number in range(3):
        serving = rig.start(request_payload(requester.address, {"a": 1}, info=info))
        home = home or await requester.connection()
        shaken = await home.frame()
        assert shaken is not None
        assert orjson.loads(shaken.header)["reuse"] == 1
        await home.frames()
        await home.send(RELEASE)
        ending = finished(await serving)
        assert (ending.outcome, ending.dials) == (Outcome.COMPLETED, 0 if number else 1)
    rig.ingress.close()
    assert home is not None
    assert await home.frame() is None
    assert not requester.dialled


@pytest.mark.parametrize("said", ["plain", "without reuse", "not asked for"])
async def test_a_requester_closes_as_before_unless_both_ends_keep_connections(
    ends: Ends, said: str
) -> None:
    receiver = ends.register(resumable=said == "without reuse")
    subject = receiver.subject
    shaken = {
        "plain": handshake(subject),
        "without reuse": offering(subject, fresh=True),
        "not asked for": reusing(subject),
    }[said]
    stream = (PROLOGUE, item(1), FINAL, SENTINEL)
    assert await said_to(address_of(ends.listener), shaken, *stream) == b""
    assert await rest(receiver) == [1]
    await has_connections(ends.listener, 0)


async def test_a_dial_without_the_offer_does_not_take_a_connection_that_was_kept(
    ends: Ends,
) -> None:
    await ends.kept()
    for offer in (None, ResumeOffer(1, 5, fresh=True)):
        receiver = ends.register(resumable=offer is not None)
        sender = await ends.dialer.dial(address_of(ends.listener), receiver.subject, offer=offer)
        assert sender.dials == 1
        await serve(sender, 1)
        assert await rest(receiver) == [1]
        assert await sender.connection.wait_closed(10)
    await has_connections(ends.listener, 1)
    assert (await ends.stream("second")).dials == 0
