"""Finding the queued messages of a request that an operator wants to cancel.

By its subject first, which costs one read for each lane and one for each message. The stream's
leader answers them: it knows every request that was accepted. Requests that Dynamo's callers
publish share one subject: their id is in the payload only, so the queue has to be read for them.
That is done in batches, which any replica answers: one that lags may not have the newest yet.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from nats.aio.client import Client

from dialback.errors import ConfigError, NotFoundError
from dialback.outcomes import Delivery
from dialback.queue.api import JetStreamApi, StoredMessage, stream_missing
from dialback.queue.batch_get import read_batch
from dialback.queue.cancellation import request_id_of
from dialback.queue.dead_letter import subject_token
from dialback.queue.inspection import lane_of, time_ns
from dialback.queue.letter_search import messages
from dialback.queue.topology import Endpoint, Lane

SEQUENCE: Final = "seq:"
"""Before a sequence, given in place of an id."""
_MAX_DIGITS: Final = 19
_BATCH: Final = 256
_MOST_OF_ONE_ID: Final = 256  # messages in one lane


@dataclass(frozen=True, slots=True)
class Queued:
    """A message of the request.

    Attributes:
        delivery: The message.
        request_id: Its request id; empty if it cannot be read.
        delivered: Whether a worker has or had it.
    """

    delivery: Delivery
    request_id: str
    delivered: bool


class CancelSearch:
    """Finds messages in one endpoint's queue."""

    def __init__(self, client: Client, api: JetStreamApi, endpoint: Endpoint) -> None:
        self._client = client
        self._api = api
        self._endpoint = endpoint

    async def find(self, given: str, *, scan: int) -> list[Queued]:
        """Return the messages that ``given`` means, in the order of their lanes.

        Args:
            given: A request id, or ``seq:N``.
            scan: How many of a lane's oldest messages to read when no subject has the id.

        Raises:
            ConfigError: If ``given`` cannot be an id.
            StreamMissingError: If the endpoint has no queue.
            ServerUnavailableError: If the server does not answer.
        """
        if not given:
            raise ConfigError("an empty text is no request id")
        delivered = await self._delivered()
        if given.startswith(SEQUENCE):
            found = await self._by_sequence(given)
        else:
            found = await self._by_subject(given) or await self._by_payload(given, scan)
        return [self._queued(stored, delivered) for stored in found]

    async def still_there(self, delivery: Delivery) -> bool:
        """Whether the message is in the queue."""
        try:
            await self._api.get_exact(self._endpoint.stream, delivery.sequence)
        except NotFoundError:
            return False
        return True

    async def remove(self, delivery: Delivery) -> bool:
        """Delete the message; return whether it was there."""
        try:
            await self._api.delete_message(self._endpoint.stream, delivery.sequence)
        except NotFoundError:
            return False
        return True

    async def _delivered(self) -> dict[str, int]:
        """Return the last delivered sequence of each lane that has a consumer."""
        stream, delivered = self._endpoint.stream, dict[str, int]()
        try:
            await self._api.stream_info(stream)
        except NotFoundError as error:
            raise stream_missing(self._endpoint) from error
        for lane in Lane:
            try:
                info = await self._api.consumer_info(stream, lane.value)
            except NotFoundError:
                continue
            delivered[lane.value] = int(info["delivered"]["stream_seq"])
        return delivered

    async def _by_sequence(self, given: str) -> list[StoredMessage]:
        number = given.removeprefix(SEQUENCE)
        if not (number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS):
            raise ConfigError(f"{given!r} is not {SEQUENCE}NUMBER")
        try:
            return [await self._api.get_exact(self._endpoint.stream, int(number))]
        except NotFoundError:
            return []

    async def _by_subject(self, given: str) -> list[StoredMessage]:
        """Return what is stored under the id's token; a payload that names another id is not it."""
        token = subject_token(given)
        found = [
            stored
            for lane in Lane
            async for stored in messages(
                self._api,
                self._endpoint.stream,
                _MOST_OF_ONE_ID,
                self._endpoint.request_subject(lane, token),
            )
        ]
        return [one for one in found if request_id_of(_delivery(one)) in {given, ""}]

    async def _by_payload(self, given: str, scan: int) -> list[StoredMessage]:
        return [
            stored
            for lane in Lane
            async for stored in self._read(self._endpoint.lane_subject(lane), scan)
            if request_id_of(_delivery(stored)) == given
        ]

    async def _read(self, subject: str, limit: int) -> AsyncIterator[StoredMessage]:
        sequence, left, more = 1, limit, True
        while more and left > 0:
            batch = await read_batch(
                self._client,
                self._endpoint.stream,
                subject=subject,
                sequence=sequence,
                limit=min(_BATCH, left),
            )
            for stored in batch.messages:
                yield stored
                sequence = stored.sequence + 1
            left -= len(batch.messages)
            more = batch.more and bool(batch.messages)

    def _queued(self, stored: StoredMessage, delivered: dict[str, int]) -> Queued:
        delivery = _delivery(stored, self._endpoint.stream)
        return Queued(
            delivery,
            request_id_of(delivery),
            delivered=stored.sequence <= delivered.get(delivery.lane, 0),
        )


def _delivery(stored: StoredMessage, stream: str = "") -> Delivery:
    return Delivery(
        payload=stored.payload,
        headers=stored.headers,
        subject=stored.subject,
        lane=lane_of(stored.subject),
        stream=stream,
        sequence=stored.sequence,
        number=0,
        published_ns=time_ns(stored.time),
    )
