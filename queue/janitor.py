"""The queue's side of the janitor: finds requests that nobody has served in time, removes them.

Only requests that were never delivered: of one that was, the server cannot say whether a worker
is renewing its lease or it waits for a retry, and a request that somebody still streams must
not be touched. Those are the workers' (a redelivery finds them expired).

Reading costs one direct get for each ``BATCH`` requests, once for each request while the same
janitor holds the claim; a pass over a queue in which nothing is new asks three consumers.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import tenacity
from nats.aio.client import Client

from dialback.errors import NotFoundError, ServerUnavailableError
from dialback.outcomes import Delivery
from dialback.queue.api import JetStreamApi, StoredMessage, stream_missing
from dialback.queue.batch_get import read_batch
from dialback.queue.inspection import time_ns
from dialback.queue.overdue import Watch, overdue_at
from dialback.queue.topology import Endpoint, Lane

BATCH: Final = 256
"""Requests read at once, and overdue ones returned at once."""
DEFAULT_INTERVAL: Final = 10.0
"""Seconds between two passes."""
LOOK: Final = 10_000
"""Requests of one lane that are read in one pass."""
_REMOVE_WITHIN: Final = 15.0  # seconds, begun tries; an election takes up to 8, a claim lasts 60
_FIRST_PAUSE: Final = 0.1  # seconds
_LONGEST_PAUSE: Final = 2.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class JanitorSettings:
    """How a janitor behaves.

    Attributes:
        interval: Seconds between two passes; 0: workers make none.
        unserved_limit: Seconds a request without deadline may wait for a worker; 0 for ever.
        replicas: Copies of the stream of claims, if it has to be created.
    """

    interval: float = DEFAULT_INTERVAL
    unserved_limit: float = 0.0
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Overdue:
    """A request that nobody has taken in time.

    Attributes:
        delivery: The message, as a worker would see it.
        due_ns: When it was overdue, Unix nanoseconds.
        unlimited: True if it has no deadline of its own, only the operator's limit.
    """

    delivery: Delivery
    due_ns: int
    unlimited: bool


class UnservedRequests:
    """Finds the overdue requests of one endpoint."""

    def __init__(
        self,
        client: Client,
        api: JetStreamApi,
        endpoint: Endpoint,
        *,
        unserved_limit: float = 0.0,
        look: int = LOOK,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Look after one queue.

        Args:
            client: A connected client.
            api: JetStream API over it.
            endpoint: Whose queue.
            unserved_limit: Seconds a request without deadline may wait; 0 for ever.
            look: Requests of one lane that are read in one pass.
            now_ns: Wall clock, Unix nanoseconds.
        """
        self._client = client
        self._api = api
        self._endpoint = endpoint
        self._unserved_limit = unserved_limit
        self._look = look
        self._now_ns = now_ns
        self._watches = {lane: Watch() for lane in Lane}
        self._created: dict[Lane, str] = {}

    def forget(self) -> None:
        """Look at everything again: somebody else looked after the queue meanwhile."""
        self._watches = {lane: Watch() for lane in Lane}

    async def overdue(self) -> AsyncIterator[list[Overdue]]:
        """Yield the overdue requests of all lanes, in batches; look at what is new before.

        Raises:
            ServerUnavailableError: If the server does not answer.
            StreamMissingError: If the endpoint has no queue.
        """
        for lane in Lane:
            await self._look_at_new(lane)
            while True:
                delivered = await self._delivered(lane)
                due = self._watches[lane].take_due(self._now_ns(), delivered=delivered, limit=BATCH)
                if not due:
                    break
                found = [await self._read(lane, sequence) for sequence in due]
                yield [one for one in found if one is not None]

    async def undelivered(self, delivery: Delivery) -> bool:
        """Whether still no worker has taken this request."""
        return delivery.sequence > await self._delivered(Lane(delivery.lane))

    async def remove(self, delivery: Delivery) -> bool:
        """Delete the request; return whether it was there, and is deleted by us.

        Raises:
            ServerUnavailableError: If the server does not answer for some time.
        """
        try:
            await self._api.delete_message(delivery.stream, delivery.sequence)
        except NotFoundError:
            return False
        except ServerUnavailableError:  # deleted or not: a leader may die before it answers
            return await self._remove_after_silence(delivery)
        return True

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(ServerUnavailableError),
        stop=tenacity.stop_before_delay(_REMOVE_WITHIN),
        wait=tenacity.wait_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
        reraise=True,
    )
    async def _remove_after_silence(self, delivery: Delivery) -> bool:
        """Delete a request that may be deleted already: one that is gone was deleted by us.

        A worker may have taken it meanwhile, if it was not. Then it is the worker's.
        """
        try:
            await self._api.get_exact(delivery.stream, delivery.sequence)
            if not await self.undelivered(delivery):
                return False
            await self._api.delete_message(delivery.stream, delivery.sequence)
        except NotFoundError:
            return True
        return True

    # --- looking ----------------------------------------------------------------------

    async def _look_at_new(self, lane: Lane) -> None:
        pending, delivered = await self._position(lane)
        watch = self._watches[lane]
        watch.start_after(delivered)
        looked = 0
        more = pending != 0
        while more and looked < self._look and watch.room > 0:
            batch = await read_batch(
                self._client,
                self._endpoint.stream,
                subject=self._endpoint.lane_subject(lane),
                sequence=watch.seen + 1,
                limit=min(BATCH, self._look - looked, watch.room),
            )
            for stored in batch.messages:
                watch.add(stored.sequence, self._overdue_at(stored))
            looked += len(batch.messages)
            more = batch.more and bool(batch.messages)

    def _overdue_at(self, stored: StoredMessage) -> int | None:
        return overdue_at(stored.headers, time_ns(stored.time), unserved_limit=self._unserved_limit)

    async def _position(self, lane: Lane) -> tuple[int | None, int]:
        """Return how many requests wait and the last delivered sequence of a lane.

        Without consumer nobody knows the number, and nothing has been delivered.
        """
        try:
            info = await self._api.consumer_info(self._endpoint.stream, lane.value)
        except NotFoundError:
            await self._prove_queue()
            return None, 0
        if self._created.setdefault(lane, info["created"]) != info["created"]:
            self._created[lane] = info["created"]
            self._watches[lane] = Watch()  # a new consumer delivers everything again
        return int(info["num_pending"]), int(info["delivered"]["stream_seq"])

    async def _prove_queue(self) -> None:
        try:
            await self._api.stream_info(self._endpoint.stream)
        except NotFoundError as error:
            raise stream_missing(self._endpoint) from error

    async def _delivered(self, lane: Lane) -> int:
        return (await self._position(lane))[1]

    async def _read(self, lane: Lane, sequence: int) -> Overdue | None:
        try:
            stored = await self._api.get_exact(self._endpoint.stream, sequence)
        except NotFoundError:
            return None
        published_ns = time_ns(stored.time)
        due = self._overdue_at(stored)
        if due is None or due > self._now_ns():
            return None  # another message: the stream was created anew
        delivery = Delivery(
            payload=stored.payload,
            headers=stored.headers,
            subject=stored.subject,
            lane=lane.value,
            stream=self._endpoint.stream,
            sequence=sequence,
            number=0,
            published_ns=published_ns,
        )
        own = overdue_at(stored.headers, published_ns, unserved_limit=0.0) is not None
        return Overdue(delivery, due, unlimited=not own)
