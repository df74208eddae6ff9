"""A requester under a test's control: accepts call-home connections, records, misbehaves."""

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Any, Self

import orjson

from dialback.transport.two_part import TwoPartDecoder, TwoPartMessage

STOP = bytes.fromhex("0000000000000006000000000000000000000000000000002273746f7022")
KILL = bytes.fromhex("000000000000000600000000000000000000000000000000226b696c6c22")


class CallHome:
    """One accepted call-home connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = TwoPartDecoder()
        self.received = bytearray()

    async def frame(self) -> TwoPartMessage | None:
        """The next frame, or ``None`` at the end of the stream (FIN or reset)."""
        while (message := self._decoder.next_message()) is None:
            try:
                data = await self._reader.read(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self.received += data
            self._decoder.receive_data(data)
        return message

    async def frames(self) -> list[TwoPartMessage]:
        """All frames up to the sentinel or the end."""
        frames: list[TwoPartMessage] = []
        while (message := await self.frame()) is not None:
            frames.append(message)
            if message.header == b'"sentinel"':
                break
        return frames

    async def send(self, data: bytes) -> None:
        """Write bytes to the worker."""
        self._writer.write(data)
        await self._writer.drain()

    def half_close(self) -> None:
        """FIN, but go on reading."""
        self._writer.write_eof()

    async def close(self) -> None:
        """FIN, read no more."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def reset(self) -> None:
        """RST at once."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class ScriptedRequester:
    """Listens like a requester; every accepted connection waits in a queue for the test."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._connections: asyncio.Queue[CallHome] = asyncio.Queue()
        self._open: list[CallHome] = []
        self.port = 0

    @property
    def address(self) -> str:
        """Address for connection info."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._open:
            await connection.close()
        if self._server is not None:
            self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = CallHome(reader, writer)
        self._open.append(connection)
        await self._connections.put(connection)

    async def connection(self) -> CallHome:
        """The next call-home connection."""
        return await self._connections.get()

    @property
    def dialled(self) -> bool:
        """Whether a connection waits that the test has not taken."""
        return not self._connections.empty()


def items_of(frames: list[TwoPartMessage]) -> list[Any]:
    """The data-only frames' bodies as JSON values."""
    return [orjson.loads(frame.data) for frame in frames if frame.data and not frame.header]
