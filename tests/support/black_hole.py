"""An address where nobody ever answers, on loopback: a listener whose queue is full."""

import socket
from types import TracebackType
from typing import Self


class BlackHole:
    """Takes no connection: the kernel drops every further SYN."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._fillers: list[socket.socket] = []

    @property
    def address(self) -> str:
        """Address for connection info."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for filler in self._fillers:
            filler.close()
        self._listener.close()


class NobodyListens:
    """A port that is bound but not listening: every connect is refused, and nobody else gets it."""

    def __init__(self) -> None:
        self._socket = socket.socket()

    @property
    def address(self) -> str:
        """Address for connection info."""
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._socket.bind(("127.0.0.1", 0))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
