"""Publishing requests and dead letters: acknowledged by the stream, errors that say what to do.

A publish is retried with the same message id while its fate is unknown, so it is stored once
(jetstream section 2.4). Source: jetstream sections 2.6 and 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import nats.errors
import orjson
import tenacity
from nats.aio.client import Client

from dialback.errors import (
    PayloadTooLargeError,
    QueueError,
    ServerUnavailableError,
    StreamMissingError,
)
from dialback.queue.api import api_error

MESSAGE_ID_HEADER: Final = "Nats-Msg-Id"
EXPECTED_SUBJECT_SEQUENCE_HEADER: Final = "Nats-Expected-Last-Subject-Sequence"
_TOO_LARGE_FOR_STREAM: Final = 10054


@dataclass(frozen=True, slots=True, kw_only=True)
class PubAck:
    """A stream's acknowledgement.

    Attributes:
        stream: Stream that stored the message.
        sequence: Its sequence there.
        duplicate: True if a message of the same id was there already and nothing was stored.
        attempts: Publishes it took; a duplicate after the first is our own message.
    """

    stream: str
    sequence: int
    duplicate: bool
    attempts: int = 1


class Publisher:
    """Publishes to JetStream over one connection."""

    def __init__(
        self, client: Client, *, timeout: float = 5.0, give_up_after: float = 30.0
    ) -> None:
        """Use a connected client.

        Args:
            client: Where to publish.
            timeout: Seconds for one acknowledgement.
            give_up_after: Seconds to go on trying while the server does not answer.
        """
        self._client = client
        self._timeout = timeout
        self._give_up_after = give_up_after

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str],
        *,
        retry: bool = True,
        room: int = 0,
    ) -> PubAck:
        """Publish and await the PubAck.

        Args:
            subject: Where to.
            payload: The message's bytes.
            headers: Its headers; with :data:`MESSAGE_ID_HEADER` a retry cannot store twice.
            retry: Try again while the server does not answer.
            room: Bytes of the server's max_payload to leave free.

        Raises:
            StreamMissingError: If no stream takes the subject.
            QueueFullError: If the stream is at its limit; nothing was stored.
            PayloadTooLargeError: If server or stream refuse the size.
            ServerUnavailableError: If nobody answered; the message may be stored all the same.
            WrongLastSequenceError: If an expected sequence was given and is not the last.
        """
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(self._give_up_after if retry else 0),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.2),
            retry=tenacity.retry_if_exception_type(ServerUnavailableError),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                ack = await self._publish_once(subject, payload, headers, room)
                return replace(ack, attempts=attempt.retry_state.attempt_number)
        raise AssertionError("unreachable")  # pragma: no cover

    async def _publish_once(
        self, subject: str, payload: bytes, headers: Mapping[str, str], room: int
    ) -> PubAck:
        limit = self._client.max_payload - room
        if len(payload) + header_size(headers) > limit:  # the server would hang up
            raise PayloadTooLargeError(len(payload), limit)
        if not self._client.is_connected:
            raise ServerUnavailableError("the nats-server is not connected at the moment")
        try:
            reply = await self._client.request(
                subject, payload, timeout=self._timeout, headers=dict(headers)
            )
        except nats.errors.NoRespondersError as error:
            raise StreamMissingError(f"no stream takes subject {subject}") from error
        except nats.errors.BadHeaderError as error:
            raise QueueError(f"the publish to {subject} has a bad header: {error}") from error
        except (nats.errors.Error, TimeoutError) as error:
            raise ServerUnavailableError(
                f"the publish to {subject} was not acknowledged ({error})"
            ) from error
        return _pub_ack(reply.data, len(payload))


def header_size(headers: Mapping[str, str]) -> int:
    """Return the bytes of the header block; the server counts them as payload."""
    lines = sum(len(k.encode()) + len(v.encode()) + 4 for k, v in headers.items())
    return lines + len(b"NATS/1.0\r\n\r\n")


def _pub_ack(data: bytes, payload_size: int) -> PubAck:
    try:
        answer: dict[str, Any] = orjson.loads(data)
    except ValueError as error:
        raise QueueError(
            "the reply to a publish is no PubAck: who answers this subject?"
        ) from error
    problem = answer.get("error")
    if problem is None:
        return PubAck(
            stream=answer["stream"],
            sequence=answer["seq"],
            duplicate=bool(answer.get("duplicate", False)),
        )
    if problem.get("err_code") == _TOO_LARGE_FOR_STREAM:
        raise PayloadTooLargeError(payload_size, 0)
    raise api_error(problem, "publish")
