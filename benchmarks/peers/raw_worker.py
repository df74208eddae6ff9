"""The worker of the raw loop-backs: one write for each turn of the event loop.

Frames are prepared; or, if the second argument is ``json``, the scenarios' engine yields items and
each is written as JSON.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, cast

from typing_extensions import override

from benchmarks.lines import serve
from benchmarks.peers.engine import generate
from benchmarks.peers.loops import run
from benchmarks.peers.raw_frames import STAMPED, body_size, frame, json_frame, padding

_BREATH = 64  # frames after which the loop turns
_MOST = 2**18  # bytes after which it does, so that large frames are not piled up
_BACKLOG = 1024  # connections that wait
_JSON = sys.argv[2:] == ["json"]


class Stream(asyncio.Protocol):
    """One connection: a line with the request comes, frames go, it closes."""

    def __init__(self) -> None:
        """Not connected yet."""
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writer: asyncio.Task[None] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    @override
    def data_received(self, data: bytes) -> None:
        self._writer = asyncio.create_task(self._write(json.loads(data)))

    @override
    def pause_writing(self) -> None:
        self._flowing.clear()

    @override
    def resume_writing(self) -> None:
        self._flowing.set()

    async def _write(self, request: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        written, breath = 0, max(1, min(_BREATH, _MOST // body_size(request)))
        items: AsyncIterator[Any] = generate(request, None) if _JSON else _frames(request)
        async for one in items:
            if not self._pending:
                loop.call_soon(self._flush)
            self._pending.append(json_frame(one) if _JSON else one)
            written += 1
            if not written % breath:
                await asyncio.sleep(0)
                await self._flowing.wait()
        self._flush()
        assert self._transport is not None  # noqa: S101 -- connected
        self._transport.close()

    def _flush(self) -> None:
        assert self._transport is not None  # noqa: S101 -- connected
        if self._pending:
            self._transport.write(b"".join(self._pending))
            self._pending.clear()


async def _frames(request: dict[str, Any]) -> AsyncIterator[bytes]:
    """The engine: as the scenarios' one, with frames in place of items."""
    size = body_size(request)
    encoded, rest = frame(size), padding(size)
    pause, turn = request["pause"], request["turn"]
    for _ in range(request["n"]):
        if turn:
            await asyncio.sleep(0)
        if pause:
            await asyncio.sleep(pause)
            yield STAMPED.pack(0, size, 0, time.monotonic_ns()) + rest
        else:
            yield encoded


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stream, "127.0.0.1", 0, backlog=_BACKLOG)
    port = server.sockets[0].getsockname()[1]

    async def tell_port(command: dict[str, Any]) -> dict[str, Any]:
        return {**command, "port": port}

    await serve(tell_port)


run(_main())
