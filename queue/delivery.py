"""One JetStream delivery: what its reply subject says, and JetStream's four answers.

Source: ADR-15 (the ``$JS.ACK`` reply subject), jetstream section 2.1 (ack as a request,
retried; a late answer is accepted, so never one after a lost lease).
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import nats.errors
import orjson
import tenacity
from nats.aio.client import Client
from nats.aio.msg import Msg

from dialback.errors import NotFoundError, QueueError, ServerUnavailableError
from dialback.queue.api import JetStreamApi

_NS: Final = 1_000_000_000
_FIRST_TIMEOUT: Final = 1.0  # seconds; then it is asked whether an answer can come at all
_V1_TOKENS: Final = 9
_V2_TOKENS: Final = 11  # and a random one at the end, which may be left out

ACK: Final = b"+ACK"
NAK: Final = b"-NAK"
TERM: Final = b"+TERM"
IN_PROGRESS: Final = b"+WPI"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryInfo:
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
    tokens = reply.split(".")
    if tokens[:2] != ["$JS", "ACK"]:
        return None
    if len(tokens) >= _V2_TOKENS:
        tokens = tokens[:2] + tokens[4:]
    elif len(tokens) != _V1_TOKENS:
        return None
    try:
        number, sequence, nth, published_ns, pending = (int(token) for token in tokens[4:9])
    except ValueError:
        return None
    return DeliveryInfo(
        stream=tokens[2],
        consumer=tokens[3],
        number=number,
        sequence=sequence,
        consumer_sequence=nth,
        published_ns=published_ns,
        pending=pending,
    )


def nak_body(delay: float) -> bytes:
    """Return the body of a NAK that asks for redelivery after ``delay`` seconds."""
    if delay <= 0:
        return NAK
    return NAK + b" " + orjson.dumps({"delay": round(delay * _NS)})


class LeaseExpiredError(QueueError):
    """Another worker may have the message: it must not be answered any more."""


class NotTakenError(ServerUnavailableError):
    """An answer did not reach the server: it was not sent, or nobody took it."""


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
        self._api = JetStreamApi(client, timeout=timeout)

    async def confirm(
        self, message: Msg, body: bytes, *, lost: Callable[[], bool] = lambda: False
    ) -> None:
        """Answer and wait until the server has applied it; ask again until it says so.

        The server takes an answer from whoever has had the message, so none is sent, for the
        first time or again, once the lease is ``lost``: it would end another worker's delivery.
        For the same reason a NAK that may have been applied is not repeated: then the message
        may be another worker's already. ACK and TERM end it, whoever has it.

        Raises:
            LeaseExpiredError: If the lease was lost before it confirmed.
            NotFoundError: If the consumer or its stream was deleted.
            ServerUnavailableError: If it never confirmed.
        """
        once = body.startswith(NAK)
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(self._give_up_after),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.2),
            retry=tenacity.retry_if_exception_type(
                NotTakenError if once else ServerUnavailableError
            ),
            reraise=True,
        )
        started = time.monotonic()
        async for attempt in retrying:
            with attempt:
                if lost():
                    raise LeaseExpiredError(f"{body.decode()} not confirmed within the lease")
                prove = time.monotonic() - started >= self._prove_after
                first = attempt.retry_state.attempt_number == 1 and not once
                timeout = min(_FIRST_TIMEOUT, self._timeout) if first else self._timeout
                await self._ask(message.reply, body, timeout, prove=prove)

    async def _ask(self, reply: str, body: bytes, timeout: float, *, prove: bool) -> None:  # noqa: ASYNC109 -- nats-py's
        if not self._client.is_connected:
            # nats-py would keep it, and send every repetition at the reconnect.
            raise NotTakenError(f"{body.decode()} not sent: not connected to NATS")
        try:
            await self._client.request(reply, body, timeout=timeout)
        except nats.errors.NoRespondersError as error:
            if prove:
                await self._prove_consumer(reply)
            raise NotTakenError(f"{body.decode()} not confirmed: {error}") from error
        except (nats.errors.Error, TimeoutError, asyncio.InvalidStateError) as error:
            if isinstance(error, TimeoutError) and await self._settled_if_forgotten(reply, body):
                return
            raise ServerUnavailableError(f"{body.decode()} not confirmed: {error}") from error

    async def _settled_if_forgotten(self, reply: str, body: bytes) -> bool:
        """Settle a message of which the server does not know that it was delivered.

        A crash takes a consumer's last milliseconds with it, a recreated consumer begins anew;
        both go on confirming renewals, but never answer ACK or TERM before they deliver the
        message again. So it is deleted instead; what was to be handed back is back already.
        """
        info = parse_ack_subject(reply)
        if info is None:
            return False
        try:
            state = await self._api.consumer_info(info.stream, info.consumer)
            if int(state["delivered"]["stream_seq"]) >= info.sequence:
                return False
            if not body.startswith(NAK):
                with suppress(NotFoundError):
                    await self._api.delete_message(info.stream, info.sequence)
        except ServerUnavailableError:
            return False
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
