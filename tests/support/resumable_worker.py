"""A worker under a test's control that announces itself to a resumable stream."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import orjson

from dialback.transport.address import Address
from dialback.transport.two_part import TwoPartMessage, encode
from support.scripted_requester import CallHome
from support.scripted_worker import dialling


def offering(
    subject: str, delivery: int = 1, epoch: int = 1, *, unable: bool = False, fresh: bool = False
) -> bytes:
    """A resumable handshake's frame."""
    document: dict[str, Any] = {
        "subject": subject,
        "stream_type": "response",
        "resume": 1,
        "delivery": delivery,
        "epoch": epoch,
    }
    if unable:
        document["unable"] = 1
    if fresh:
        document["fresh"] = 1
    return encode(orjson.dumps(document))


def superseded(delivery: int) -> TwoPartMessage:
    """What a worker is told whose stream another delivery serves."""
    return TwoPartMessage(f'{{"superseded":{delivery}}}'.encode())


def said(message: TwoPartMessage | None) -> tuple[int, int]:
    """Delivered items and fruitless workers, as an answer has them."""
    assert message is not None
    answer: dict[str, Any] = orjson.loads(message.header)
    return answer["resume"], answer["fruitless"]


@contextlib.asynccontextmanager
async def resuming(
    address: Address, subject: str, *, delivery: int = 1, epoch: int = 1, unable: bool = False
) -> AsyncGenerator[tuple[CallHome, TwoPartMessage]]:
    """A connection that has shaken hands, and what the requester said to it."""
    async with dialling(address, offering(subject, delivery, epoch, unable=unable)) as worker:
        answer = await worker.frame()
        assert answer is not None
        yield worker, answer
