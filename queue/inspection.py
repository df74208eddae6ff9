"""What an inspection finds: frozen values, and nothing that does anything. No I/O.

The values keep the payload: why a worker would refuse it is the ingress's to say, which this
layer does not know.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from dialback.outcomes import Delivery
from dialback.queue.topology import Endpoint, Lane

_NS: Final = 1_000_000_000
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """One lane of a queue.

    Attributes:
        lane: Which.
        has_consumer: False if nobody can take this lane's messages; the numbers are then None.
        queued: Requests that wait for their first delivery.
        in_flight: Requests that a worker has, or that wait for a retry.
        redelivered: Those of them that were delivered more than once.
        waiting: Pull requests of workers that have free slots.
        paused: Whether an operator has paused the lane.
        oldest: Age of the lane's oldest request in seconds, in flight or not; None if empty.
        oldest_queued: Age of the oldest that waits for its first delivery, in seconds.
    """

    lane: Lane
    has_consumer: bool
    queued: int | None = None
    in_flight: int | None = None
    redelivered: int | None = None
    waiting: int | None = None
    paused: bool = False
    oldest: float | None = None
    oldest_queued: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSummary:
    """One lane of one endpoint, with the endpoint's dead letters (of all lanes)."""

    endpoint: Endpoint
    state: LaneState
    dead_letters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """Everything about one endpoint's queue.

    Attributes:
        endpoint: Which.
        stream: Name of its stream.
        created: When the stream was created, RFC 3339.
        settings: What the stream is set to; seconds, bytes and counts.
        messages, size: Requests in the stream and their bytes, in flight or not.
        first_sequence, last_sequence: Sequences of the oldest and the newest message.
        lanes: Its lanes.
        dead_letters, dead_size: Its dead letters and their bytes.
        drift: One sentence for each setting that is not as wanted.
        advice: One sentence for each thing that an operator should know.
        server_version: Version of the nats-server.
        max_payload: Largest message that the server takes, in bytes.
    """

    endpoint: Endpoint
    stream: str
    created: str
    settings: Mapping[str, Any]
    messages: int
    size: int
    first_sequence: int
    last_sequence: int
    lanes: tuple[LaneState, ...]
    dead_letters: int
    dead_size: int
    drift: tuple[str, ...]
    advice: tuple[str, ...]
    server_version: str
    max_payload: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedMessage:
    """A request in a queue.

    Attributes:
        stream, sequence, subject: Where it is.
        lane: Its lane.
        request_id: The control message's id, or what a worker would use instead.
        stored_at: When it was stored, RFC 3339.
        age: Seconds since then.
        delivered: Whether a worker has or had it; None if the lane has no consumer.
        deadline_left: Seconds until its caller gives up waiting; negative when that has
            happened, None if it has no deadline.
        caller: Address where the answer goes, as written; empty if that cannot be read.
        codec: Codec of body and answers, as written; empty if that cannot be read.
        headers: NATS headers.
        payload: The two-part message.
    """

    stream: str
    sequence: int
    subject: str
    lane: str
    request_id: str
    stored_at: str
    age: float
    delivered: bool | None
    deadline_left: float | None
    caller: str
    codec: str
    headers: Mapping[str, str]
    payload: bytes

    @property
    def delivery(self) -> Delivery:
        """The message as a worker's ingress would see it."""
        return Delivery(
            payload=self.payload,
            headers=self.headers,
            subject=self.subject,
            lane=self.lane,
            stream=self.stream,
            sequence=self.sequence,
            published_ns=time_ns(self.stored_at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter.

    Attributes:
        stream, sequence, subject: Where it is.
        request_id: The request's id.
        outcome, reason: Why it was given up.
        worker: Who gave it up.
        deliveries: How often it had been delivered.
        origin: ``stream:sequence:time`` of the original message.
        origin_subject: Subject of the original: where a requeue publishes.
        stored_at: When it was given up, RFC 3339.
        age: Seconds since then.
        history: Earlier dead letters of the same request, oldest first.
        caller, codec: As in :class:`QueuedMessage`.
        headers: NATS headers.
        payload: The two-part message.
    """

    stream: str
    sequence: int
    subject: str
    request_id: str
    outcome: str
    reason: str
    worker: str
    deliveries: int
    origin: str
    origin_subject: str
    stored_at: str
    age: float
    history: tuple[Mapping[str, Any], ...]
    caller: str
    codec: str
    headers: Mapping[str, str]
    payload: bytes

    @property
    def lane(self) -> str:
        """Lane of the original, empty if its subject has none."""
        return lane_of(self.origin_subject)


class RequeueStatus(StrEnum):
    """What became of one letter."""

    REQUEUED = "requeued"
    """The request is queued again and the letter is gone."""
    GONE = "gone"
    """The letter was not there any more; nothing was queued."""
    LEFT = "left"
    """The request is queued again, but the letter could not be deleted."""
    FAILED = "failed"
    """Nothing was queued; the letter is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """The result for one letter.

    Attributes:
        sequence: The letter's sequence.
        status: What became of it.
        queued_sequence: Sequence of the request in the queue, if it is there.
        reason: Why not, in a sentence.
    """

    sequence: int
    status: RequeueStatus
    queued_sequence: int | None = None
    reason: str = ""


# --- words and times the values share ---------------------------------------------------


def lane_of(subject: str) -> str:
    """Return the lane in ``dialback.NS.COMP.EP.jobs.LANE...``, empty if there is none."""
    tokens = subject.split(".")[4:]
    ours = tokens[:1] == ["jobs"] and len(tokens) > 1 and tokens[1] in set(Lane)
    return tokens[1] if ours else ""


def time_ns(time: str) -> int:
    """Return the server's RFC 3339 time as Unix nanoseconds, exactly.

    Raises:
        ValueError: If it is none.
    """
    found = _TIME.fullmatch(time)
    if found is None:
        raise ValueError(f"{time!r} is no RFC 3339 time")
    seconds, fraction, zone = found.groups()
    whole = int(datetime.fromisoformat(seconds + zone).timestamp())
    return whole * _NS + int((fraction or "0").ljust(9, "0"))
