"""An answer without an engine: dial the caller, say no, end the stream.

What the ingress says about a request that it will not run, and what the janitor and an
operator's cancel say about one that nobody has taken. Source: overview section 3, rule 1.
"""

import logging
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dialback.errors import (
    CallHomeForbiddenError,
    Cancelled,
    DialError,
    ProtocolError,
    PublishError,
    ResponseTimeout,
    StreamSupersededError,
)
from dialback.ingress.request import CallHome, ParsedRequest, Rejection, parse_unary
from dialback.outcomes import Delivery, Finished, Outcome, Revocation, Revoked
from dialback.transport.dial import Dialer
from dialback.transport.dynamo_errors import backend_error
from dialback.transport.items import encode_error_item, encode_final
from dialback.transport.messages import DynamoError, PayloadCodec, ResumeOffer
from dialback.transport.sender import ResponseSender

logger = logging.getLogger(__name__)

EXPIRED: Final = "the request's deadline passed while it was queued"
"""What the caller of an expired request is told."""
ANSWER_TIMEOUT: Final = 10.0
"""Seconds a requester may take to say what it has of a resumable stream."""
OUTRANKING: Final = ResumeOffer(delivery=2**63 - 1, epoch=2**63 - 1)
"""An operator's: no worker serves a stream against it."""
OUTRANKED: Final = ResumeOffer(delivery=0, epoch=0)
"""A janitor's: it never takes a stream from a worker."""


class Heard(Enum):
    """What came of an answer."""

    TOLD = "told"
    NOT = "not told"
    """The stream is spent, or its requester cannot be reached."""
    SERVED = "served"
    """A worker serves the stream, or has begun to."""


def offer_of(
    delivery: Delivery, *, unable: bool, fresh: bool = False, reuse: bool = False
) -> ResumeOffer:
    """Return what a worker says of itself when it dials a resumable stream.

    Args:
        delivery: The delivery that it has.
        unable: Whether it could not go on where another worker was lost.
        fresh: Whether it runs its engine without asking what the requester has.
        reuse: Whether it keeps the connection when the stream is over.
    """
    return ResumeOffer(delivery.number, delivery.epoch, unable=unable, fresh=fresh, reuse=reuse)


def need_not_ask(delivery: Delivery, *, expired: bool) -> bool:
    """Whether the requester of a resumable stream has nothing yet, as far as a worker can know.

    Args:
        delivery: The delivery.
        expired: Whether the first item is overdue: then what to do depends on the answer.
    """
    earlier = delivery.redelivered or delivery.attempts or delivery.crashes
    return delivery.number == 1 and not earlier and not expired


def expiry(reason: str = EXPIRED) -> DynamoError:
    """Return the error of a request whose time is over."""
    return backend_error(ResponseTimeout, reason)


def cancellation(detail: str = "") -> DynamoError:
    """Return the error of a request that an operator cancelled; ``detail`` is the reason given."""
    return backend_error(Cancelled, cancellation_text(detail))


def cancellation_text(detail: str) -> str:
    """Return the sentence for a cancelled request."""
    return "an operator cancelled the request" + (f": {detail}" if detail else "")


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers callers.

    Attributes:
        dialer: Opens response streams.
        refusal_wait: Seconds to wait for the reset of a spent subject, which is the only
            sign that nobody hears the answer; 0 not to look.
    """

    dialer: Dialer
    refusal_wait: float = 0.0

    async def end(self, delivery: Delivery, outcome: Outcome, error: DynamoError) -> Finished:
        """Tell the caller of a message that nobody runs; return how its request ends."""
        parsed = parse_unary(delivery)
        heard = await self.tell(parsed.call_home, error, offer=OUTRANKING)
        return _finished(parsed, outcome, error, heard)

    async def end_unserved(
        self, delivery: Delivery, outcome: Outcome, error: DynamoError
    ) -> Finished | None:
        """Do the same, but say nothing if a worker serves the stream or has; then ``None``.

        A new consumer, or a server that forgot, takes a request that runs for undelivered.
        """
        parsed = parse_unary(delivery)
        heard = await self.tell(parsed.call_home, error, offer=OUTRANKED)
        return None if heard is Heard.SERVED else _finished(parsed, outcome, error, heard)

    async def answer(
        self,
        call_home: CallHome | None,
        error: DynamoError,
        *,
        offer: ResumeOffer,
        revocation: Revocation | None = None,
    ) -> bool:
        """Do the same as :meth:`tell`; return whether it was said."""
        heard = await self.tell(call_home, error, offer=offer, revocation=revocation)
        return heard is Heard.TOLD

    async def tell(
        self,
        call_home: CallHome | None,
        error: DynamoError,
        *,
        offer: ResumeOffer,
        revocation: Revocation | None = None,
    ) -> Heard:
        """Dial and say no: good prologue, error item, final.

        Never an error prologue: Dynamo's requesters then avoid the worker for 5 s and
        migrate the request (protocol section 13).

        Args:
            call_home: Where to; ``None`` if the message does not say.
            error: What to say.
            offer: Who says it, on a stream that its requester keeps for another worker.
            revocation: Of the delivery, if there is one: it ends the wait for the
                requester's close.
        """
        if call_home is None:
            return Heard.NOT
        try:
            sender = await self.dialer.dial(
                call_home.address, call_home.subject, offer=offer if call_home.resumable else None
            )
        except (DialError, CallHomeForbiddenError) as failure:
            logger.debug("the answer cannot be delivered", extra={"reason": str(failure)})
            return Heard.NOT

        def end_linger(reason: Revoked) -> None:
            if reason is not Revoked.CANCELLED:  # that one is the answer's own reason
                sender.end_linger()

        if revocation is not None:
            revocation.on_revoked(end_linger)
        try:
            return await self._on(sender, call_home, error, offer)
        except StreamSupersededError:
            return Heard.SERVED
        except PublishError:  # the stream is over
            return Heard.NOT
        finally:
            sender.abort()

    async def _on(
        self, sender: ResponseSender, call_home: CallHome, error: DynamoError, offer: ResumeOffer
    ) -> Heard:
        if call_home.resumable:
            answer = await sender.resume_answer(ANSWER_TIMEOUT, call_home.codec)
            if offer == OUTRANKED and answer.resume:
                await _leave(sender)
                return Heard.SERVED
        elif self.refusal_wait and await sender.refused(self.refusal_wait):
            return Heard.NOT
        return Heard.TOLD if await say(sender, error, call_home.codec) else Heard.NOT


async def _leave(sender: ResponseSender) -> None:
    """End a connection as a hand-over does: the requester waits for a worker, as before."""
    sender.write_prologue()
    await sender.finish()


def _finished(
    parsed: ParsedRequest | Rejection, outcome: Outcome, error: DynamoError, heard: Heard
) -> Finished:
    home = parsed.call_home
    return Finished(
        outcome=outcome,
        request_id=parsed.request_id,
        reason=error.message,
        caller=str(home.address) if home else "",
        caller_told=heard is Heard.TOLD,
    )


async def say(sender: ResponseSender, error: DynamoError, codec: PayloadCodec) -> bool:
    """Say no on an open stream: prologue, error item, final. Return whether it was said."""
    try:
        sender.write_prologue()
        sender.write_item(encode_error_item(error, codec))
        sender.write_final(encode_final(codec))
        await sender.finish()
    except (PublishError, ProtocolError):  # gone, or killed right after the handshake
        return False
    return True
