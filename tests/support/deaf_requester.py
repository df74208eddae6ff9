"""A requester that accepts and never reads, with buffers so small that a write soon stands."""

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self

import pytest

from dialback.transport.connection import FrameConnection

_BUFFER_BYTES = 4096


def shrink_send_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the worker's sockets a small send buffer, so that unsent bytes stay in our hands."""
    original = FrameConnection.connection_made

    def connection_made(connection: FrameConnection, transport: asyncio.BaseTransport) -> None:
        original(connection, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    monkeypatch.setattr(FrameConnection, "connection_made", connection_made)


class DeafRequester:
    """Listens and accepts one connection; sends, but never reads."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._connection: socket.socket | None = None

    @property
    def address(self) -> str:
        """Address for connection info."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()

    async def accept(self) -> None:
        """Take the call-home connection."""
        loop = asyncio.get_running_loop()
        self._connection, _ = await loop.sock_accept(self._listener)

    async def send(self, data: bytes) -> None:
        """Write to the worker."""
        assert self._connection is not None
        await asyncio.get_running_loop().sock_sendall(self._connection, data)

    def reset(self) -> None:
        """RST at once."""
        assert self._connection is not None
        linger = struct.pack("ii", 1, 0)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._connection.close()
