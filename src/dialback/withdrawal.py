"""Requests that are removed from their queue again, because nobody waits for them any more.

Best effort: one that stays is expired by its own headers.
"""

import asyncio
import logging
import uuid
from typing import Final

from dialback.errors import QueueError
from dialback.queue.client import QueueClient
from dialback.queue.publisher import MESSAGE_ID_HEADER, PubAck
from dialback.request import Request
from dialback.scopes import Scope

logger = logging.getLogger(__name__)

WITHDRAWAL: Final = 5.0
"""Seconds for a removal."""
_EXPECTED_LAST_ID_HEADER: Final = "Nats-Expected-Last-Msg-Id"


async def withdraw(client: QueueClient, ack: PubAck) -> None:
    """Remove a request that was acknowledged."""
    try:
        await client.api.delete_message(ack.stream, ack.sequence)
    except QueueError as error:
        logger.debug("request not withdrawn", extra={"reason": str(error), "seq": ack.sequence})


class Recalls:
    """Removes requests whose callers have left before the acknowledgement, in the background."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> frozenset[asyncio.Task[None]]:
        """Those under way; each ends by itself within :data:`WITHDRAWAL`."""
        return frozenset(self._running)

    def begin(self, client: QueueClient, request: Request) -> None:
        """Remove a request that may be stored.

        Not one whose id its caller chose: what is stored under it may be another request.
        """
        if not request.id_is_new:
            return
        work = Scope().run(_recall(client, request), within=WITHDRAWAL)
        task = asyncio.create_task(work, name="recall")
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _recall(client: QueueClient, request: Request) -> None:
    """Find a request by its message id, and withdraw it.

    Published again it is a duplicate, and the answer says where the first one is. If there is no
    first one, the server stores nothing: no message has the id that it is to find last. It looks
    for duplicates before that, and takes both publishes in the order of the connection.
    """
    headers = {
        MESSAGE_ID_HEADER: request.request_id,
        _EXPECTED_LAST_ID_HEADER: str(uuid.uuid4()),
    }
    try:
        ack = await client.publisher.publish(request.subject, b"", headers)
    except QueueError as error:
        logger.debug("request not recalled", extra={"reason": str(error)})
    else:
        await withdraw(client, ack)
