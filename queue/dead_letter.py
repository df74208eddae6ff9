"""Dead letters: what was given up, kept with its reason, once.

A dead letter is published with ``Nats-Expected-Last-Subject-Sequence`` before the original is
terminated; a crash in between makes the next worker find the letter (error 10071) and compare
the stored origin. The same origin is done; another one's letter is followed by a new one.

Source: jetstream section 2.3, overview section 8.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import orjson

from dialback.errors import NotFoundError, PayloadTooLargeError
from dialback.outcomes import Delivery, Finished
from dialback.queue.api import JetStreamApi, WrongLastSequenceError
from dialback.queue.publisher import EXPECTED_SUBJECT_SEQUENCE_HEADER, Publisher, header_size
from dialback.queue.topology import Endpoint

OUTCOME: Final = "Dialback-Outcome"
REASON: Final = "Dialback-Reason"
REQUEST_ID: Final = "Dialback-Request-Id"
ORIGIN: Final = "Dialback-Origin"
"""Stream, sequence and publish time of the original: ``stream:sequence:ns``."""
ORIGIN_SUBJECT: Final = "Dialback-Origin-Subject"
DELIVERIES: Final = "Dialback-Deliveries"
WORKER: Final = "Dialback-Worker"
HISTORY: Final = "Dialback-History"
"""JSON list of earlier dead letters of the same request (it was requeued in between)."""
TRUNCATED: Final = "Dialback-Truncated"
"""Size of the payload in bytes, of which the letter has only a part."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # others cannot be published
_MAX_TEXT: Final = 1024
_MAX_BARE_REASON: Final = 200
_EXPECTED_ROOM: Final = 64  # bytes of the header with the expected sequence
_MAX_ROUNDS: Final = 5


def subject_token(request_id: str) -> str:
    """Return the subject token of a request id: itself if it can be one, else a hash."""
    if _TOKEN.fullmatch(request_id):
        return request_id
    return "h-" + hashlib.sha256(request_id.encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterRecord:
    """What is written about a message that is given up.

    Attributes:
        request_id: The request's id, or what stands for it.
        outcome: Why.
        reason: Why, in a sentence.
        delivery: The message.
        worker: Who gave it up.
    """

    request_id: str
    outcome: str
    reason: str
    delivery: Delivery
    worker: str

    @classmethod
    def of(cls, ending: Finished, delivery: Delivery, worker: str) -> "DeadLetterRecord":
        """Return the record of an ending."""
        return cls(
            request_id=ending.request_id,
            outcome=ending.outcome,
            reason=ending.reason,
            delivery=delivery,
            worker=worker,
        )

    @property
    def origin(self) -> str:
        """Which message this was: tells a retried dead letter from another one's."""
        delivery = self.delivery
        return f"{delivery.stream}:{delivery.sequence}:{delivery.published_ns}"

    def bare_headers(self) -> dict[str, str]:
        """Return the least a letter needs: for a payload that leaves no room for more."""
        return {
            OUTCOME: self.outcome,
            REASON: header_text(self.reason)[:_MAX_BARE_REASON],
            ORIGIN: self.origin,
            ORIGIN_SUBJECT: self.delivery.subject,
        }

    def headers(self) -> dict[str, str]:
        """Return the letter's headers: the original's, and ours."""
        kept = {
            name: value
            for name, value in self.delivery.headers.items()
            if not name.lower().startswith("nats-") and _HEADER_NAME.fullmatch(name)
        }
        return kept | {
            OUTCOME: self.outcome,
            REASON: header_text(self.reason)[:_MAX_TEXT],
            REQUEST_ID: header_text(self.request_id)[:_MAX_TEXT],
            ORIGIN: self.origin,
            ORIGIN_SUBJECT: self.delivery.subject,
            DELIVERIES: str(self.delivery.number),
            WORKER: self.worker,
        }


def header_text(text: str) -> str:
    """Return text that is safe in a header: one line, printable ASCII."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def with_history(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a letter that is requeued: ours folded into the history."""
    deliveries = headers.get(DELIVERIES, "")
    entry = {
        "outcome": headers.get(OUTCOME),
        "reason": headers.get(REASON),
        "worker": headers.get(WORKER),
        "deliveries": int(deliveries) if deliveries.isascii() and deliveries.isdigit() else 0,
    }
    ours = {OUTCOME, REASON, REQUEST_ID, ORIGIN, ORIGIN_SUBJECT, DELIVERIES, WORKER, HISTORY}
    kept = {
        name: value
        for name, value in headers.items()
        if name not in ours and not name.lower().startswith("nats-")
    }
    history = [*history_of(headers), entry]
    return kept | {HISTORY: orjson.dumps(history).decode()}


def history_of(headers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the earlier dead letters of the same request, oldest first."""
    try:
        return msgspec.json.decode(headers.get(HISTORY, "[]"), type=list[dict[str, Any]])
    except msgspec.DecodeError:
        return []


class DeadLetters:
    """Writes dead letters of one endpoint."""

    def __init__(self, api: JetStreamApi, publisher: Publisher, endpoint: Endpoint) -> None:
        self._api = api
        self._publisher = publisher
        self._endpoint = endpoint

    async def write(self, record: DeadLetterRecord) -> None:
        """Store the letter, once for each origin.

        The headers count: a payload just under the limit leaves no room for all of them. One
        that leaves no room for the least is cut: a letter with its reason is better than a
        message that is delivered, and its caller dialled, for ever.

        Raises:
            QueueError: If it could not be stored; then the original must stay.
        """
        payload, bare = record.delivery.payload, record.bare_headers()
        try:
            await self._write(record, record.headers(), payload)
        except PayloadTooLargeError as error:
            limit = error.limit
        else:
            return
        if limit <= 0 or len(payload) + header_size(bare) + _EXPECTED_ROOM <= limit:
            await self._write(record, bare, payload)
            return
        bare[TRUNCATED] = str(len(payload))
        room = max(0, limit - header_size(bare) - _EXPECTED_ROOM)
        await self._write(record, bare, payload[:room])

    async def _write(
        self, record: DeadLetterRecord, headers: dict[str, str], payload: bytes
    ) -> None:
        subject = self._endpoint.dead_subject(subject_token(record.request_id))
        expected = 0
        for _ in range(_MAX_ROUNDS):
            headers[EXPECTED_SUBJECT_SEQUENCE_HEADER] = str(expected)
            try:
                await self._publisher.publish(subject, payload, headers)
            except WrongLastSequenceError:
                stored = await self._last(subject)
                if stored is not None and stored[1] == record.origin:
                    return
                expected = stored[0] if stored else 0
            else:
                return
        raise WrongLastSequenceError(f"dead letter {subject} keeps changing under our hands")

    async def _last(self, subject: str) -> tuple[int, str] | None:
        """Return sequence and origin of the newest letter of a subject."""
        try:
            letter = await self._api.get_last(self._endpoint.dead_stream, subject)
        except NotFoundError:
            return None
        return letter.sequence, letter.headers.get(ORIGIN, "")
