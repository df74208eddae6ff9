"""Orphans: deliveries whose process has died are handed back before their lease ends.

Whoever knows a delivery's ack subject may answer it. The NAK comes from a connection of the
supervisor's own, and without a hand-back note: a death is a crash and counts as one.

Source: jetstream section 2.1.
"""

import asyncio
import logging
import time
from typing import Final

import nats.errors

from dialback.errors import DialbackError
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents, ServerAddress
from dialback.queue.delivery import NAK

logger = logging.getLogger(__name__)

_TIMEOUT: Final = 5.0  # seconds for one confirmation
_RETRY: Final = 0.1  # seconds between two looks at a server that is away
_RECONNECT: Final = 5.0  # seconds between two first connects


class Orphans:
    """Hands deliveries back, as soon as there is a connection."""

    def __init__(self, server: ServerAddress, *, name: str, within: float) -> None:
        """Prepare; :meth:`run` connects.

        Args:
            server: Which server, and as whom: the workers' own rights suffice.
            name: Connection name.
            within: Seconds for one attempt to connect.
        """
        self._server = server
        self._name = name
        self._within = within
        self._client: QueueClient | None = None

    async def run(self) -> None:
        """Stay connected until cancelled; without a connection orphans wait for their lease."""
        while True:
            closed = asyncio.Event()
            try:
                client = await QueueClient.open(
                    self._server,
                    name=self._name,
                    role="lease",
                    within=self._within,
                    events=ConnectionEvents(closed=closed.set),
                )
            except DialbackError as error:
                logger.warning(
                    "not connected to NATS: the messages of a process that dies now come"
                    " again only when their lease ends",
                    extra={"reason": str(error)},
                )
                await asyncio.sleep(_RECONNECT)
                continue
            self._client = client
            try:
                await closed.wait()
            finally:
                self._client = None
                await client.close()

    async def hand_back(self, reply: str, until: float) -> bool:
        """Have a delivery redelivered at once; return whether the server confirmed it.

        A NAK that is not confirmed is not repeated, for it may have been applied: a second
        one would take the message from its next holder. The lease's end decides then.

        Args:
            reply: The delivery's ack subject.
            until: Monotonic time at which its lease may end; nothing is sent after it.
        """
        while time.monotonic() < until:
            client = self._client
            if client is not None and client.connection.is_connected:
                try:
                    await client.connection.request(reply, NAK, timeout=_TIMEOUT)
                except nats.errors.NoRespondersError:
                    pass  # nobody took it: a leader is being elected
                except (nats.errors.Error, TimeoutError, asyncio.InvalidStateError, OSError):
                    return False
                else:
                    return True
            await asyncio.sleep(_RETRY)
        return False
