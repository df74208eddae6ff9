"""Publishing requests and dead letters: acknowledged by the stream, errors that say what to do.

A publish is repeated with the same message id until its outcome is known, so it is stored once
(jetstream section 2.4). "No responders" has two meanings, a subject that no stream takes and a
stream without a leader, so JetStream is asked which before a stream is called missing.

Source: jetstream sections 2.6, 5 and 7.
"""

import asyncio
import logging
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
from dialback.queue.api import JetStreamApi, api_error
from dialback.queue.replies import Replies
from dialback.retries import with_retries

logger = logging.getLogger(__name__)

MESSAGE_ID_HEADER: Final = "Nats-Msg-Id"
EXPECTED_SUBJECT_SEQUENCE_HEADER: Final = "Nats-Expected-Last-Subject-Sequence"
_TOO_LARGE_FOR_STREAM: Final = 10054
_ASK_TIMEOUT: Final = 2.0  # seconds for the question whether a stream exists
_ASK_AGAIN: Final = 10.0  # seconds; a user without the right is never answered
_TELL_AGAIN: Final = 10.0  # seconds
_MAX_BACKOFF: Final = 1.0
_MAY_BE_STORED: Final = "; it may be stored all the same"
_SAFE_ID: Final = ": repeating it with the same id is safe for 10 minutes"


@dataclass(frozen=True, slots=True, kw_only=True)
class PubAck:
    """A stream's acknowledgement.

    Attributes:
        stream: Stream that stored the message.
        sequence: Its sequence there.
        duplicate: True if a message of the same id was there already and nothing was stored.
        attempts: Publishes that may have stored it; a duplicate after the first is our own
            message.
    """

    stream: str
    sequence: int
    duplicate: bool
    attempts: int = 1


class OutcomeUnknownError(ServerUnavailableError):
    """A publish was sent and not answered: it may be stored."""


class Publisher:
    """Publishes to JetStream over one connection."""

    def __init__(
        self,
        client: Client,
        *,
        timeout: float = 5.0,
        give_up_after: float = 30.0,
        max_in_flight: int = 100,
    ) -> None:
        """Use a connected client.

        Args:
            client: Where to publish.
            timeout: Seconds for one acknowledgement.
            give_up_after: Seconds to go on trying while the server does not answer; an
                election takes up to 10.
            max_in_flight: Publishes that are under way at the same time; more wait their turn,
                in order. Throughput does not grow beyond it.
        """
        self._client = client
        self._api = JetStreamApi(client, timeout=_ASK_TIMEOUT)
        self._timeout = timeout
        self._give_up_after = give_up_after
        self._turns = asyncio.Semaphore(max_in_flight)
        self._replies = Replies(client)
        self._ask_not_before = 0.0
        self._tell_not_before = 0.0
        self._not_answered = "not answered yet"

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
            ServerUnavailableError: If nobody answered; the text says whether the message may
                be stored all the same.
            WrongLastSequenceError: If an expected sequence was given and is not the last.
        """
        patience = self._give_up_after if retry else 0.0
        end = _now() + self._give_up_after
        unknown = 0

        async def attempt() -> PubAck:
            nonlocal unknown
            try:
                return await self._publish_once(subject, payload, headers, room, end)
            except OutcomeUnknownError:
                unknown += 1
                raise

        try:
            ack = await with_retries(attempt, lambda took: self._retrying(patience - took))
            return replace(ack, attempts=1 + unknown) if unknown else ack
        except ServerUnavailableError as error:
            if unknown:
                safe = _SAFE_ID if MESSAGE_ID_HEADER in headers else ""
                raise OutcomeUnknownError(f"{error}{_MAY_BE_STORED}{safe}") from error
            raise

    def _retrying(self, seconds: float) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(seconds),
            wait=tenacity.wait_exponential(multiplier=0.1, max=_MAX_BACKOFF)
            + tenacity.wait_random(0, 0.2),
            retry=tenacity.retry_if_exception(self._can_still_succeed),
            before_sleep=lambda state: self._trying_again(state.outcome, seconds),
            reraise=True,
        )

    def _trying_again(self, outcome: tenacity.Future | None, seconds: float) -> None:
        """Say what is waited for: once in a while, however many publishes wait for it."""
        if outcome is not None and _now() >= self._tell_not_before:
            self._tell_not_before = _now() + _TELL_AGAIN
            facts = {"reason": str(outcome.exception()), "give_up_after": round(seconds)}
            logger.warning("a publish failed and is tried again", extra=facts)

    def _can_still_succeed(self, error: BaseException) -> bool:
        return isinstance(error, ServerUnavailableError) and not self._client.is_closed

    async def _publish_once(
        self, subject: str, payload: bytes, headers: Mapping[str, str], room: int, end: float
    ) -> PubAck:
        limit = self._client.max_payload - room
        if len(payload) + header_size(headers) > limit:  # the server would hang up
            raise PayloadTooLargeError(len(payload), limit)
        try:
            answer = await self._ask(subject, payload, headers, end)
        except nats.errors.NoRespondersError as error:
            raise await self._nobody_took(subject) from error
        except nats.errors.BadHeaderError as error:
            raise QueueError(f"the publish to {subject} has a bad header: {error}") from error
        except (nats.errors.Error, TimeoutError) as error:
            raise OutcomeUnknownError(
                f"the publish to {subject} was not acknowledged ({error})"
            ) from error
        return _pub_ack(answer, len(payload))

    def connection_lost(self) -> None:
        """Wait no longer for acknowledgements: they went with the connection."""
        self._replies.connection_lost()

    async def _ask(
        self, subject: str, payload: bytes, headers: Mapping[str, str], end: float
    ) -> bytes:
        """Take a turn, send, and await the answer for as long as the connection lasts."""
        await self._turn(end)
        try:
            if not self._client.is_connected:
                raise ServerUnavailableError("the nats-server is not connected at the moment")
            return await self._replies.ask(subject, payload, timeout=self._timeout, headers=headers)
        finally:
            self._turns.release()

    async def _turn(self, end: float) -> None:
        """Become one of the publishes under way, or give up at ``end``."""
        if not self._turns.locked():
            await self._turns.acquire()
            return
        try:
            async with asyncio.timeout_at(end):
                await self._turns.acquire()
        except TimeoutError as error:
            raise ServerUnavailableError(
                "too many publishes wait for an acknowledgement; this one was not sent"
            ) from error

    async def _nobody_took(self, subject: str) -> QueueError:
        """Return what "no responders" means here.

        One publish asks at a time; and since a user who may not ask is never answered, none
        asks again at once.
        """
        if _now() >= self._ask_not_before:
            self._ask_not_before = _now() + _ASK_AGAIN
            try:
                streams = await self._api.stream_names(subject=subject)
            except QueueError as error:
                self._not_answered = str(error)
            else:
                self._ask_not_before = 0.0
                if not streams:
                    return StreamMissingError(f"no stream takes subject {subject}")
                return ServerUnavailableError(f"stream {streams[0]} has no leader at the moment")
        return ServerUnavailableError(
            f"no stream takes subject {subject}, or its stream has no leader at the moment;"
            f" which of them is not known: {self._not_answered}"
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def header_size(headers: Mapping[str, str]) -> int:
    """Return the bytes of the header block; the server counts them as payload."""
    texts = "".join((*headers, *headers.values()))
    return len(texts.encode()) + len(b": \r\n") * len(headers) + len(b"NATS/1.0\r\n\r\n")


def _pub_ack(data: bytes, payload_size: int) -> PubAck:
    try:
        answer: dict[str, Any] = orjson.loads(data)
        problem = answer.get("error")
        if problem is None:
            return PubAck(
                stream=answer["stream"],
                sequence=answer["seq"],
                duplicate=bool(answer.get("duplicate", False)),
            )
    except (ValueError, KeyError, AttributeError) as error:
        raise QueueError(
            "the reply to a publish is no PubAck: who answers this subject?"
        ) from error
    if problem.get("err_code") == _TOO_LARGE_FOR_STREAM:
        raise PayloadTooLargeError(payload_size, 0)
    raise api_error(problem, "publish")
