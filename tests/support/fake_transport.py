"""A transport without a network: what was written, write by write."""

import asyncio
from collections.abc import Iterable

from typing_extensions import override

from dialback.transport.connection import FrameConnection


class FakeTransport(asyncio.Transport):
    """A transport that sends nothing by itself."""

    def __init__(self, unsent: Iterable[int] = (), *, forgets_to_pause: bool = False) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.protocol: FrameConnection | None = None
        self._unsent = iter(unsent)
        self._forgets = forgets_to_pause
        self._buffered = 0
        self._high = 0
        self._closing = False

    @override
    def is_closing(self) -> bool:
        return self._closing

    @override
    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines([data])
        self._pause_if_over()

    @override
    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        data = b"".join(list_of_data)
        self.calls.append(data)
        self._buffered += len(data)
        if not self._forgets:
            self._pause_if_over()

    @override
    def get_write_buffer_size(self) -> int:
        return next(self._unsent, self._buffered)

    @override
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self._high = high
        self._pause_if_over()

    def _pause_if_over(self) -> None:
        if self.protocol is not None and self._buffered > self._high:
            self.protocol.pause_writing()

    @override
    def abort(self) -> None:
        self._closing = True
        assert self.protocol is not None
        self.protocol.connection_lost(None)

    def join(self, connection: FrameConnection) -> None:
        connection.connection_made(self)
        self.protocol = connection
