"""A worker process's end of the link to its supervisor: one socket, both ways.

Out go reports about leases (:mod:`dialback.held_leases`), in comes nothing but the end: when
the supervisor is gone the worker drains, for nobody else would ever stop it.

No report waits. When the socket is full, reports are dropped until it takes one again, and
that one is preceded by ``Forget``: so the supervisor never acts on what is no longer true. The
price is that the deliveries held meanwhile, if the process dies before their next renewal,
come again when their lease ends and not at once.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from dialback.errors import ConfigError
from dialback.held_leases import Forget, Held, Ready, Released, Report, as_line

logger = logging.getLogger(__name__)


class SupervisorLink:
    """Reports to the supervisor, and notices its end.

    ``held`` and ``released`` are called on the worker's event loop and on the lease thread.
    """

    def __init__(self, link: socket.socket) -> None:
        """Take over the process's end of a connected pair of stream sockets."""
        link.setblocking(False)
        self._socket = link
        self._lock = threading.Lock()
        self._complete = True

    @classmethod
    def inherited(cls, descriptor: int) -> "SupervisorLink":
        """Take over the socket that the supervisor left open for this process.

        Raises:
            ConfigError: If it is no socket: nobody but the supervisor gives this number.
        """
        try:
            os.set_inheritable(descriptor, False)  # not for what the engine starts
            return cls(socket.socket(fileno=descriptor))
        except OSError as error:
            raise ConfigError(
                f"--supervised-by {descriptor} is no link to a supervisor ({error.strerror})"
            ) from error

    def ready(self) -> None:
        """The worker has begun to pull."""
        self._report(Ready())

    def held(self, reply: str, confirmed: float) -> None:
        """A delivery is held; its lease was confirmed at this monotonic time."""
        self._report(Held(reply, confirmed))

    def released(self, reply: str) -> None:
        """A delivery is settled, or its lease was lost."""
        self._report(Released(reply))

    def close(self) -> None:
        """The worker has ended in good order: nothing is to be handed back."""
        self._report(Forget())
        self._socket.close()

    @contextmanager
    def watched(self, gone: Callable[[], None]) -> Generator[None]:
        """Call ``gone`` once, on the running event loop, when the supervisor is gone."""
        loop = asyncio.get_running_loop()

        def readable() -> None:
            with suppress(BlockingIOError, ConnectionError):
                if self._socket.recv(1):
                    return
            loop.remove_reader(self._socket)
            logger.warning("the supervisor is gone")
            gone()

        loop.add_reader(self._socket, readable)
        try:
            yield
        finally:
            loop.remove_reader(self._socket)

    def _report(self, report: Report) -> None:
        line = as_line(report)
        with self._lock:
            if not self._complete:
                line = b"\n" + as_line(Forget()) + line
            try:
                self._complete = self._socket.send(line) == len(line)
            except OSError:  # full, or nobody reads any more
                self._complete = False
