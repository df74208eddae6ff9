"""Looking into queues and dead letters, and putting letters back into the queue.

Returns values and prints nothing. Every read is a Get Message, a stream or a consumer info:
no consumer is ever created, so that looking cannot change what workers get (operator 1.1).

Requeueing loses nothing: a letter is deleted only after the queue has stored its request anew
(overview section 8); a crash in between leaves both.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from dialback.errors import NotFoundError, QueueError, ServerUnavailableError
from dialback.queue.api import JetStreamApi, StoredMessage, stream_missing
from dialback.queue.client import QueueClient
from dialback.queue.dead_letter import ORIGIN_SUBJECT, TRUNCATED, with_history
from dialback.queue.inspection import (
    LaneState,
    Letter,
    QueuedMessage,
    QueueInfo,
    QueueSummary,
    Requeued,
    RequeueStatus,
    lane_of,
    time_ns,
)
from dialback.queue.letter_search import find_letter, messages, no_letter
from dialback.queue.provisioned import advice_for, drift_of, shown_settings
from dialback.queue.publisher import MESSAGE_ID_HEADER, PubAck, Publisher
from dialback.queue.reading import letter, queued_message
from dialback.queue.topology import Endpoint, Lane, QueueSettings
from dialback.transport.request_headers import DEADLINE_HEADERS

_NS: Final = 1_000_000_000
_MAX_ROUNDS: Final = 10


class Inspector:
    """Looks into the queues of one nats-server account."""

    def __init__(self, client: QueueClient, *, timeout: float = 5.0) -> None:
        """Use a connected client; ``timeout`` is seconds for each request."""
        self._client = client
        self._api = JetStreamApi(client.connection, timeout=timeout)
        self._publisher = Publisher(client.connection, timeout=timeout)

    # --- queues -----------------------------------------------------------------------

    async def queues(self) -> list[QueueSummary]:
        """Return one row for each endpoint and lane; streams that are not ours are ignored."""
        rows: list[QueueSummary] = []
        for endpoint in await self._endpoints("JOBS_"):
            try:
                lanes, dead = await asyncio.gather(self._lanes(endpoint), self._dead(endpoint))
            except NotFoundError:
                continue  # deleted while we were looking
            rows += [
                QueueSummary(endpoint=endpoint, state=state, dead_letters=dead["messages"])
                for state in lanes
            ]
        return rows

    async def queue(self, endpoint: Endpoint, wanted: QueueSettings | None = None) -> QueueInfo:
        """Return everything about one queue.

        Args:
            endpoint: Whose.
            wanted: What to compare its settings with; the defaults if not given.

        Raises:
            StreamMissingError: If the endpoint has no queue.
        """
        found = await self._stream(endpoint)
        state, config = found["state"], found["config"]
        dead = await self._dead(endpoint)
        consumers = [await self._consumer(endpoint, lane) for lane in Lane]
        lanes = tuple(await self._lanes(endpoint))
        max_payload = self._client.connection.max_payload
        return QueueInfo(
            endpoint=endpoint,
            stream=endpoint.stream,
            created=found["created"],
            settings=shown_settings(config, consumers),
            messages=state["messages"],
            size=state["bytes"],
            first_sequence=state["first_seq"],
            last_sequence=state["last_seq"],
            lanes=lanes,
            dead_letters=dead["messages"],
            dead_size=dead["bytes"],
            drift=drift_of(endpoint, wanted or QueueSettings(), config, consumers),
            advice=advice_for(found, lanes, has_dead_stream=dead["exists"]),
            server_version=self._client.server_version,
            max_payload=max_payload,
        )

    async def peek(
        self, endpoint: Endpoint, limit: int, lane: Lane | None = None
    ) -> list[QueuedMessage]:
        """Return the oldest requests of a queue, or of one lane, without taking them.

        Raises:
            StreamMissingError: If the endpoint has no queue.
        """
        found = await self._stream(endpoint)
        delivered: dict[str, int | None] = {}
        for one in Lane:
            consumer = await self._consumer(endpoint, one)
            delivered[one] = consumer["delivered"]["stream_seq"] if consumer else None
        subject = endpoint.lane_subject(lane) if lane else None
        return [
            queued_message(
                stored,
                stream=endpoint.stream,
                now_ns=time_ns(found["ts"]),
                delivered_up_to=delivered.get(lane_of(stored.subject)),
            )
            async for stored in messages(self._api, endpoint.stream, limit, subject)
        ]

    # --- dead letters -----------------------------------------------------------------

    async def dead_endpoints(self) -> list[Endpoint]:
        """Return the endpoints that have a stream of dead letters."""
        return await self._endpoints("DEAD_")

    async def dead_letter_count(self, endpoint: Endpoint) -> int:
        """Return the number of an endpoint's dead letters.

        Raises:
            StreamMissingError: If the endpoint has neither queue nor dead letters.
        """
        dead = await self._dead(endpoint)
        if not dead["exists"]:
            await self._stream(endpoint)
        return int(dead["messages"])

    async def dead_letters(self, endpoint: Endpoint, limit: int) -> list[Letter]:
        """Return the oldest dead letters of an endpoint.

        Raises:
            StreamMissingError: If the endpoint has neither queue nor dead letters.
        """
        dead = await self._dead(endpoint)
        if not dead["exists"]:
            await self._stream(endpoint)
            return []
        stream = endpoint.dead_stream
        return [
            letter(stored, stream=stream, now_ns=dead["now_ns"])
            async for stored in messages(self._api, stream, limit)
        ]

    async def dead_letter(self, endpoint: Endpoint, given: str) -> Letter:
        """Return one dead letter by request id, by the beginning of one, or by ``seq:N``.

        Raises:
            NotFoundError: If there is none.
            AmbiguousIdError: If there are several.
            ConfigError: If ``given`` cannot be an id.
            StreamMissingError: If the endpoint has neither queue nor dead letters.
        """
        dead = await self._dead(endpoint)
        if not dead["exists"]:
            await self._stream(endpoint)
            raise no_letter(endpoint, given)
        stored = await find_letter(self._api, endpoint, given)
        return letter(stored, stream=endpoint.dead_stream, now_ns=dead["now_ns"])

    async def requeue(self, endpoint: Endpoint, sequence: int) -> Requeued:
        """Queue a dead letter's request again, without deadlines, then delete the letter.

        Raises:
            ServerUnavailableError: If the server does not answer. The letter is still there
                then; the request may be queued all the same.
        """
        try:
            stored = await self._api.get_exact(endpoint.dead_stream, sequence)
        except NotFoundError:
            return Requeued(
                sequence=sequence, status=RequeueStatus.GONE, reason="there is no such letter"
            )
        try:
            ack = await self._publish_again(endpoint, stored)
        except ServerUnavailableError:
            raise
        except QueueError as error:
            return Requeued(sequence=sequence, status=RequeueStatus.FAILED, reason=str(error))
        return await self._delete(endpoint, sequence, ack)

    async def _publish_again(self, endpoint: Endpoint, stored: StoredMessage) -> PubAck:
        """Publish until the queue has stored it: an id that it knows stores nothing."""
        subject = stored.headers.get(ORIGIN_SUBJECT, "")
        if not subject.startswith(tuple(_lane_roots(endpoint))):
            raise QueueError(f"its {ORIGIN_SUBJECT} {subject!r} is no subject of {endpoint}")
        if size := stored.headers.get(TRUNCATED):
            raise QueueError(
                f"its payload was cut to {len(stored.payload)} of {size} bytes, to fit into a"
                " letter: the request cannot be run. Its caller has to send it again"
            )
        headers = requeue_headers(stored.headers)
        for number in range(1, _MAX_ROUNDS + 1):
            message_id = f"{endpoint.dead_stream}:{stored.sequence}:{number}"
            ack = await self._publisher.publish(
                subject, stored.payload, headers | {MESSAGE_ID_HEADER: message_id}, retry=False
            )
            if not ack.duplicate:
                return ack
        raise QueueError(
            f"the queue has stored this letter {_MAX_ROUNDS} times within its duplicate window"
        )

    async def _delete(self, endpoint: Endpoint, sequence: int, ack: PubAck) -> Requeued:
        status, reason = RequeueStatus.REQUEUED, ""
        try:
            await self._api.delete_message(endpoint.dead_stream, sequence)
        except NotFoundError:
            reason = "the letter was deleted by somebody else meanwhile"
        except QueueError as error:
            status = RequeueStatus.LEFT
            reason = f"queued again, but the letter could not be deleted: {error}"
        return Requeued(
            sequence=sequence, status=status, queued_sequence=ack.sequence, reason=reason
        )

    # --- the server's answers ---------------------------------------------------------

    async def _endpoints(self, prefix: str) -> list[Endpoint]:
        names = await self._api.stream_names()
        found = [Endpoint.of_stream(name) for name in sorted(names) if name.startswith(prefix)]
        return [endpoint for endpoint in found if endpoint is not None]

    async def _stream(self, endpoint: Endpoint) -> dict[str, Any]:
        try:
            return await self._api.stream_info(endpoint.stream)
        except NotFoundError as error:
            raise stream_missing(endpoint) from error

    async def _dead(self, endpoint: Endpoint) -> dict[str, Any]:
        """Return state and time of the dead-letter stream; it may be missing."""
        try:
            found = await self._api.stream_info(endpoint.dead_stream)
        except NotFoundError:
            return {"exists": False, "messages": 0, "bytes": 0, "now_ns": 0}
        return {"exists": True, "now_ns": time_ns(found["ts"]), **found["state"]}

    async def _consumer(self, endpoint: Endpoint, lane: Lane) -> dict[str, Any] | None:
        try:
            return await self._api.consumer_info(endpoint.stream, lane.value)
        except NotFoundError:
            return None

    async def _lanes(self, endpoint: Endpoint) -> list[LaneState]:
        return await asyncio.gather(*(self._lane(endpoint, lane) for lane in Lane))

    async def _lane(self, endpoint: Endpoint, lane: Lane) -> LaneState:
        consumer = await self._consumer(endpoint, lane)
        if consumer is None:
            stream = await self._api.stream_info(endpoint.stream)
            oldest = await self._oldest(endpoint, lane, 1, stream["ts"])
            return LaneState(lane=lane, has_consumer=False, oldest=oldest)
        queued, in_flight = consumer["num_pending"], consumer["num_ack_pending"]
        now, following = consumer["ts"], consumer["delivered"]["stream_seq"] + 1
        return LaneState(
            lane=lane,
            has_consumer=True,
            queued=queued,
            in_flight=in_flight,
            redelivered=consumer["num_redelivered"],
            waiting=consumer["num_waiting"],
            paused=bool(consumer.get("paused")),
            oldest=await self._oldest(endpoint, lane, 1, now) if queued or in_flight else None,
            oldest_queued=await self._oldest(endpoint, lane, following, now) if queued else None,
        )

    async def _oldest(self, endpoint: Endpoint, lane: Lane, first: int, now: str) -> float | None:
        """Return the age of the first request of a lane at or after a sequence."""
        try:
            stored = await self._api.get_message(
                endpoint.stream, sequence=first, subject=endpoint.lane_subject(lane)
            )
        except NotFoundError:
            return None
        return max(0, time_ns(now) - time_ns(stored.time)) / _NS


def requeue_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a letter's request when it is queued again.

    Ours go into the history. The deadlines go, since an operator who requeues wants it run;
    so do the instructions to JetStream that the letter was stored with.
    """
    deadlines = {name.lower() for name in DEADLINE_HEADERS}
    return {
        name: value
        for name, value in with_history(headers).items()
        if name.lower() not in deadlines and not name.lower().startswith("nats-")
    }


def _lane_roots(endpoint: Endpoint) -> list[str]:
    return [endpoint.lane_subject(lane).removesuffix(">") for lane in Lane]
