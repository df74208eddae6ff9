"""Items over the back-channel: encode, frame, write, read, decode, on one event loop.

Peer: the same frames by ``StreamWriter.write`` and ``drain`` for each item, read by
``StreamReader.readexactly``: what one writes first.
"""

import asyncio
import struct
from typing import Any, Final

import orjson

from benchmarks.measure import compare
from dialback.transport.address import CallHomePolicy
from dialback.transport.dial import Dialer
from dialback.transport.items import encode_final, encode_item
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import PayloadCodec

ITEMS: Final = 20_000
ITEM: Final[dict[str, Any]] = {"token": "word", "index": 12345, "logprob": -0.25}
_HEAD: Final = struct.Struct(">QQQ")


async def _dialback() -> None:
    listener = ResponseListener()
    address = await listener.start()
    receiver = listener.register(PayloadCodec.JSON)
    sender = await Dialer(CallHomePolicy()).dial(address, receiver.subject)

    async def write() -> None:
        sender.write_prologue()
        for _ in range(ITEMS):
            sender.write_item(encode_item(ITEM, PayloadCodec.JSON))
            if sender.needs_breath:
                await sender.breathe()
        sender.write_final(encode_final(PayloadCodec.JSON))
        await sender.finish()

    async def read() -> None:
        for _ in range(ITEMS):
            await receiver.next_item()

    await asyncio.gather(write(), read())
    await listener.close()


async def _streams() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(ITEMS):
            body = orjson.dumps({"data": {"data": ITEM}, "complete_final": False})
            writer.write(_HEAD.pack(0, len(body), 0) + body)
            await writer.drain()
            await asyncio.sleep(0)  # as an engine that awaits between two items
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(ITEMS):
        _, size, _ = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        orjson.loads(await reader.readexactly(size))
    writer.close()
    server.close()


async def main() -> None:
    """Compare."""
    await compare(
        title="one stream of small items",
        unit="items",
        count=ITEMS,
        ours=_dialback,
        peer=_streams,
        peer_name="asyncio streams, one write and drain for each item",
    )
