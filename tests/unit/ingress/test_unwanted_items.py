"""An engine that yields on without awaiting when the requester wants no more of its stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest

from dialback.ingress.context import Context
from dialback.ingress.engine import Engine
from dialback.ingress.response import ResponseHooks, StreamEnd, run_response
from dialback.metrics.registration import Count
from dialback.outcomes import Revocation
from dialback.transport.messages import PayloadCodec, ResumeAnswer, ResumeOffer
from dialback.transport.response_stream import KILL_FRAME
from dialback.transport.resume_frames import answer_frame, superseded_frame
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import encode
from support.fake_transport import FakeTransport
from support.ingress_rig import ACCEPTED, item, item_bytes

FRESH: Final = ResumeOffer(delivery=1, epoch=5, fresh=True)
MANY: Final = 1000  # more than a writer may write before the loop turns
HAS_ANOTHER: Final = answer_frame(
    ResumeAnswer(resume=0, fruitless=0, digest="", waited_ms=0), None, PayloadCodec.JSON
)


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (KILL_FRAME, StreamEnd.KILLED),
        (encode(b"garbage"), StreamEnd.KILLED),
        (superseded_frame(2), StreamEnd.SUPERSEDED),
        (HAS_ANOTHER, StreamEnd.NOT_FIRST),
    ],
    ids=["kill", "violation", "superseded", "not the first"],
)
async def test_nothing_is_written_or_counted_any_more(said: bytes, end: StreamEnd) -> None:
    transport, sender, healthy, counted = FakeTransport(), ResponseSender(), list[int](), Count()
    cleaned: list[str] = []
    transport.join(sender.connection)
    sender.send_handshake("s", FRESH)

    async def chatters(_: object) -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.sleep(0)
            sender.connection.data_received(said)
            for number in range(1, MANY):
                yield number
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            cleaned.append("to its end")

    run = await run_response(
        Engine(chatters),
        None,
        Context("r1"),
        sender,
        codec=PayloadCodec.JSON,
        revocation=Revocation(),
        stop_grace=10,
        hooks=ResponseHooks(item_sent=lambda: healthy.append(1), response_bytes=counted),
    )
    assert (run.end, run.items, len(healthy)) == (end, 1, 1)
    assert cleaned == ["to its end"]
    assert counted.value <= item_bytes(0, 1)  # the one that was refused included
    assert b"".join(transport.calls).endswith(ACCEPTED + item(0))
