"""The code that runs for every item or every request, and a raw loop to compare it with.

Each path is called through the seams that other code calls it through, with stand-ins where
the network would be, so a number of operations is all that one run does.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from nats.aio.msg import Msg

from benchmarks.guard.stand_ins import Confirming, Memory
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine
from dialback.ingress.response import ResponseHooks, run_response
from dialback.outcomes import Revocation
from dialback.queue.delivery import ACK, Settler, parse_ack_subject
from dialback.transport.incoming import IncomingConnection
from dialback.transport.items import encode_item
from dialback.transport.messages import PayloadCodec
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import WorkerEnd
from dialback.transport.sender import ResponseSender
from dialback.transport.two_part import FrameLimits, encode

ITEM: Final[dict[str, Any]] = {"token": "word", "index": 12345, "logprob": -0.25}
_JSON: Final = PayloadCodec.JSON
_HEAD: Final = struct.Struct(">QQQ")
_SUBJECT: Final = "6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6"
_REPLY: Final = "$JS.ACK.JOBS_a_C_b_E_c.high.1.17.21.1700000000123456789.5"
_FRAMES_IN_CHUNK: Final = 64


def raw(operations: int) -> None:
    """Write and read items by hand: what all paths are compared with."""
    for _ in range(operations):
        body = orjson.dumps({"data": {"data": ITEM}, "complete_final": False})
        frame = b"".join((_HEAD.pack(0, len(body), 0), body))
        _, size, _ = _HEAD.unpack_from(frame)
        orjson.loads(frame[_HEAD.size : _HEAD.size + size])


def encode_items(operations: int) -> None:
    """Write items as frames."""
    for _ in range(operations):
        encode(b"", encode_item(ITEM, _JSON))


def decode_items(operations: int) -> None:
    """Read items out of an accepted connection's bytes, as the requester does."""
    asyncio.run(_decode(operations))


async def _decode(operations: int) -> None:
    receiver = ResponseReceiver(_SUBJECT, _JSON, on_settled=lambda _: None)
    incoming = IncomingConnection(
        lambda _: receiver,
        on_closed=lambda _: None,
        limits=FrameLimits(),
        handshake_timeout=60.0,
    )
    connection = incoming.connection
    connection.connection_made(Memory())
    worker = WorkerEnd()
    connection.data_received(worker.handshake(_SUBJECT))
    connection.data_received(worker.prologue())
    frame = encode(b"", encode_item(ITEM, _JSON))
    left = operations
    while left:
        count = min(left, _FRAMES_IN_CHUNK)
        connection.data_received(frame * count)
        for _ in range(count):
            await receiver.next_item()
        left -= count
    connection.connection_lost(None)


def pump_items(operations: int) -> None:
    """Run an engine and write what it yields."""
    asyncio.run(_pump(operations))


async def _pump(operations: int) -> None:
    async def engine(_request: object, _context: Context) -> AsyncIterator[Any]:
        for _ in range(operations):
            yield ITEM

    sender = ResponseSender()
    sender.connection.connection_made(Memory())
    sender.send_handshake(_SUBJECT)
    run = await run_response(
        Engine(engine),
        None,
        Context("guard"),
        sender,
        codec=_JSON,
        revocation=Revocation(),
        stop_grace=60.0,
        hooks=ResponseHooks(),
    )
    assert run.items == operations, run  # noqa: S101 -- else nothing was measured


def settle_deliveries(operations: int) -> None:
    """Read deliveries' reply subjects and confirm their acknowledgements."""
    asyncio.run(_settle(operations))


async def _settle(operations: int) -> None:
    client = Confirming().client
    settler = Settler(client)
    message = Msg(_client=client, subject="", reply=_REPLY)
    for _ in range(operations):
        parse_ack_subject(message.reply)
        await settler.confirm(message, ACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class HotPath:
    """Something that runs often.

    Attributes:
        run: Does it so many times.
        operations: How often one measurement does it.
    """

    run: Callable[[int], None]
    operations: int


RAW: Final = "raw loop"
HOT_PATHS: Final = {
    RAW: HotPath(run=raw, operations=5_000),
    "encode": HotPath(run=encode_items, operations=5_000),
    "decode": HotPath(run=decode_items, operations=5_000),
    "pump": HotPath(run=pump_items, operations=5_000),
    "settle": HotPath(run=settle_deliveries, operations=1_000),
}
