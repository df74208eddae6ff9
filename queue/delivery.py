"""One JetStream delivery: what its reply subject says, and JetStream's four answers.

Source: ADR-15 (the ``$JS.ACK`` reply subject), jetstream section 2.1 (ack as a request,
retried; a late answer is accepted, so never one after a lost lease).
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import msgspec
import nats.errors
import orjson
import tenacity
from nats.aio.client import Client

from dialback.errors import NotFoundError, QueueError, ServerUnavailableError
from dialback.queue.api import JetStreamApi
from dialback.queue.replies import Replies
from dialback.retries import with_retries

_NS: Final = 1_000_000_000
_FIRST_TIMEOUT: Final = 1.0  # seconds, until it is known that an answer can come at all
_LOOK_EVERY: Final = 0.1  # seconds, for the connection
_PREFIX: Final = "$JS.ACK."
_V1_TOKENS: Final = 9
_V2_TOKENS: Final = 11  # and a random one at the end, which may be left out

ACK: Final = b"+ACK"
NAK: Final = b"-NAK"
TERM: Final = b"+TERM"
IN_PROGRESS: Final = b"+WPI"


class DeliveryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a message's reply subject says.

    Attributes:
        stream: Stream name.
        consumer: Consumer name (here: the lane).
        number: ``num_delivered``, 1 for the first delivery.
        sequence: Stream sequence.
        consumer_sequence: How many deliveries the consumer has made, this one included.
        published_ns: When it was stored, Unix nanoseconds.
        pending: Messages still waiting behind it at that consumer.
    """

    stream: str
    consumer: str
    number: int
    sequence: int
    consumer_sequence: int
    published_ns: int
    pending: int


def parse_ack_subject(reply: str) -> DeliveryInfo | None:
    """Read ``$JS.ACK.<stream>.<consumer>...``, or its v2 form with domain and account hash.

    ``None`` if the subject is none of these: the message is a status, or not JetStream's.
    """
    if not reply.startswith(_PREFIX):
        return None
    tokens = reply.split(".")
    if len(tokens) >= _V2_TOKENS:
        tokens = tokens[4:11]
    elif len(tokens) == _V1_TOKENS:
        tokens = tokens[2:]
    else:
        return None
    stream, consumer, number, sequence, nth, published_ns, pending = tokens
    try:
        return DeliveryInfo(
            stream=stream,
            consumer=consumer,
            number=int(number),
            sequence=int(sequence),
            consumer_sequence=int(nth),
            published_ns=int(published_ns),
            pending=int(pending),
        )
    except ValueError:
        return None


def nak_body(delay: float) -> bytes:
    """Return the body of a NAK that asks for redelivery after ``delay`` seconds."""
    if delay <= 0:
        return NAK
    return NAK + b" " + orjson.dumps({"delay": round(delay * _NS)})


class LeaseExpiredError(QueueError):
    """Another worker may have the message: it must not be answered any more."""


class NotTakenError(ServerUnavailableError):
    """An answer did not reach the server: it was not sent, or nobody took it."""


class DeliveredError(ServerUnavailableError):
    """The server knows that it delivered the message, and still did not confirm an answer."""


class Answerable(Protocol):
    """What can be answered: a message, or the work on one that may be delivered again."""

    @property
    def reply(self) -> str:
        """Its ack subject, as of now."""
        ...


class Settler:
    """Answers deliveries, and makes sure that the answer was heard."""

    def __init__(
        self,
        client: Client,
        *,
        timeout: float = 5.0,
        give_up_after: float = 300.0,
        prove_after: float = 3.0,
    ) -> None:
        """Use a connected client.

        Args:
            client: Where to answer.
            timeout: Seconds for one confirmation.
            give_up_after: Seconds to go on trying.
            prove_after: Seconds after which to ask whether the consumer still exists, when
                nobody takes the answer.
        """
        self._client = client
        self._timeout = timeout
        self._give_up_after = give_up_after
        self._prove_after = prove_after
        self._replies = Replies(client)
        self._api = JetStreamApi(client, timeout=timeout)
        self._impatient_api = JetStreamApi(client, timeout=min(_FIRST_TIMEOUT, timeout))

    async def confirm(
        self, target: Answerable, body: bytes, *, lost: Callable[[], bool] = lambda: False
    ) -> None:
        """Answer and wait until the server has applied it; ask again until it says so.

        The server takes an answer from whoever has had the message, so none is sent, for the
        first time or again, once the lease is ``lost``: it would end another worker's delivery.
        For the same reason a NAK that may have been applied is not repeated: then the message
        may be another worker's already. ACK and TERM end it, whoever has it. Each repetition goes
        to where the message's last delivery is to be answered.

        Raises:
            LeaseExpiredError: If the lease was lost before it confirmed.
            NotFoundError: If the consumer or its stream was deleted.
            ServerUnavailableError: If it never confirmed.
        """
        once = body.startswith(NAK)
        started = time.monotonic()
        timeout = self._timeout if once else min(_FIRST_TIMEOUT, self._timeout)

        async def attempt() -> None:
            nonlocal timeout
            if not self._client.is_connected:
                await self._wait_for_connection(lost, started + self._give_up_after)
            if lost():
                raise LeaseExpiredError(f"{body.decode()} not confirmed within the lease")
            prove = time.monotonic() - started >= self._prove_after
            try:
                await self._ask(target.reply, body, timeout, prove=prove)
            except DeliveredError:  # the answer will come, if it is given more time
                timeout = self._timeout
                raise

        await with_retries(attempt, lambda took: self._retrying(self._give_up_after - took, once))

    def _retrying(self, seconds: float, once: bool) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(seconds),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.2),
            retry=tenacity.retry_if_exception_type(
                NotTakenError if once else ServerUnavailableError
            ),
            reraise=True,
        )

    async def _wait_for_connection(self, lost: Callable[[], bool], end: float) -> None:
        """Wait for the connection, which is no attempt; at most until ``end``, monotonic."""
        while not self._client.is_connected:
            if self._client.is_closed or lost() or time.monotonic() > end:
                return  # what comes next says so
            await asyncio.sleep(_LOOK_EVERY)

    async def _ask(self, reply: str, body: bytes, timeout: float, *, prove: bool) -> None:  # noqa: ASYNC109 -- nats-py's
        if not self._client.is_connected:
            # nats-py would keep it, and send every repetition at the reconnect.
            raise NotTakenError(f"{body.decode()} not sent: not connected to NATS")
        try:
            await self._replies.ask(reply, body, timeout=timeout)
        except nats.errors.NoRespondersError as error:
            if prove:
                await self._prove_consumer(reply)
            raise NotTakenError(f"{body.decode()} not confirmed: {error}") from error
        except (nats.errors.Error, TimeoutError) as error:
            if isinstance(error, TimeoutError) and await self._settled_if_forgotten(reply, body):
                return
            raise ServerUnavailableError(f"{body.decode()} not confirmed: {error}") from error

    async def _settled_if_forgotten(self, reply: str, body: bytes) -> bool:
        """Settle a message of which the server does not know that it was delivered; if it can be.

        A crash takes a consumer's last milliseconds with it, a recreated consumer begins anew;
        both go on confirming renewals, but never answer ACK or TERM before they deliver the
        message again. So it is deleted instead; what was to be handed back is back already.

        Raises:
            DeliveredError: If the server does know it.
        """
        info = parse_ack_subject(reply)
        if info is None or not self._client.is_connected:
            return False
        try:
            state = await self._impatient_api.consumer_info(info.stream, info.consumer)
            delivered = int(state["delivered"]["stream_seq"]) >= info.sequence
            if not delivered and not body.startswith(NAK):
                with suppress(NotFoundError):
                    await self._impatient_api.delete_message(info.stream, info.sequence)
        except ServerUnavailableError:
            return False
        if delivered:
            raise DeliveredError(f"{body.decode()} not confirmed in time")
        return True

    async def _prove_consumer(self, reply: str) -> None:
        """Raise NotFoundError if nobody will ever take this answer.

        Nobody takes one while a leader is elected either, so nothing less is proof.
        """
        info = parse_ack_subject(reply)
        if info is None:
            return
        try:
            await self._api.consumer_info(info.stream, info.consumer)
        except NotFoundError as error:
            raise NotFoundError(
                f"consumer {info.consumer} of stream {info.stream} was deleted while its message"
                f" {info.sequence} was being worked on ({error})"
            ) from error
