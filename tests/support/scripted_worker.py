"""A worker under a test's control: dials a listener, writes what it is told, misbehaves."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import orjson

from dialback.transport.address import Address
from dialback.transport.items import encode_final, encode_item
from dialback.transport.messages import PayloadCodec
from dialback.transport.two_part import encode
from support.scripted_requester import CallHome

PROLOGUE = encode(b'{"error":null}')
SENTINEL = encode(b'"sentinel"')
FINAL = encode(b"", encode_final(PayloadCodec.JSON))


def handshake(subject: str, stream_type: str = "response") -> bytes:
    """A handshake's frame."""
    return encode(orjson.dumps({"subject": subject, "stream_type": stream_type}))


def item(value: object) -> bytes:
    """An item's frame, JSON."""
    return encode(b"", encode_item(value, PayloadCodec.JSON))


def body(text: bytes) -> bytes:
    """A data-only frame with any body."""
    return encode(b"", text)


@contextlib.asynccontextmanager
async def dialling(address: Address, *frames: bytes) -> AsyncGenerator[CallHome]:
    """A connection to a listener, with the frames written."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    worker = CallHome(reader, writer)
    try:
        await worker.send(b"".join(frames))
        yield worker
    finally:
        await worker.close()
