"""The client of the raw loop-backs: one connection for each stream, frames split and counted.

If the third argument is ``json``, each is read, and its number is looked at.
"""

import asyncio
import json
import sys
from typing import Any, cast

from typing_extensions import override

from benchmarks.lines import serve
from benchmarks.peers.asking import Reading, carry_out
from benchmarks.peers.loops import run
from benchmarks.peers.raw_frames import HEAD, STAMPED, json_item

_JSON = sys.argv[3:] == ["json"]


class Reader(asyncio.Protocol):
    """Counts the frames of one stream.

    Attributes:
        count: Frames so far.
        closed: Set when the connection is gone.
    """

    def __init__(self, request: dict[str, Any], reading: Reading) -> None:
        """Prepare to send a request."""
        self.count = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._reading = reading
        self._buffer = bytearray()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        stream.write(json.dumps(self._request).encode())

    @override
    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        timed_from = self._reading.timed_from
        start, count, available = 0, self.count, len(buffer)
        while available - start >= HEAD.size:
            _, size, _ = HEAD.unpack_from(buffer, start)
            if available - start < HEAD.size + size:
                break
            if _JSON:
                item = json_item(buffer, start, start + HEAD.size + size)
                if item["i"] != count:
                    raise ValueError(f"item {item['i']} came where {count} should")
            elif count >= timed_from:
                self._reading.came(STAMPED.unpack_from(buffer, start)[3])
            start += HEAD.size + size
            count += 1
        if count and not self.count:
            self._reading.first_came()
        self.count = count
        del buffer[:start]

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(exc)


async def _main(port: int) -> None:
    loop = asyncio.get_running_loop()

    async def ask(request: dict[str, Any], reading: Reading) -> None:
        _, reader = await loop.create_connection(
            lambda: Reader(request, reading), "127.0.0.1", port
        )
        await reader.closed
        reading.check(reader.count)

    await serve(lambda command: carry_out(command, ask))


run(_main(int(sys.argv[2])))
