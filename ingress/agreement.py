"""The first words of a resumable stream: the requester says what it has, the worker plans.

I/O round the pure decisions of :mod:`dialback.ingress.resumption`. Source: overview section 4.
"""

import time
from typing import Final

from dialback.errors import PublishError, StreamSupersededError
from dialback.ingress.answer import say
from dialback.ingress.engine import Engine
from dialback.ingress.request import ParsedRequest
from dialback.ingress.response import Resumption
from dialback.ingress.resumption import GiveUp, Replay, Start, plan
from dialback.ingress.revoked import handed_back_or_superseded, unless_revoked
from dialback.ingress.session import ExchangeTools, Progress, Session
from dialback.metrics.names import ErrorType
from dialback.outcomes import Delivery, Ending, Finished, Outcome, Revoked, Superseded
from dialback.transport.sender import ResponseSender

_AT_THE_FIRST_ITEM: Final = Start()


async def agree(
    delivery: Delivery,
    parsed: ParsedRequest,
    sender: ResponseSender,
    progress: Progress,
    *,
    engine: Engine,
    tools: ExchangeTools,
    now_ns: int,
) -> Session | Ending:
    """Hear what the requester has, and decide where the engine begins.

    A fresh handshake asked nothing: it begins at the first item.

    Args:
        delivery: The delivery.
        parsed: Its request, whose requester keeps the stream for another worker.
        sender: The open stream, handshake written.
        progress: Marked as handshaken when the engine may begin.
        engine: Says what it can do.
        tools: Settings and metrics.
        now_ns: Wall clock, Unix nanoseconds.
    """
    settings = tools.settings
    if sender.fresh:
        progress.handshaken = True
        return _session(engine, _AT_THE_FIRST_ITEM)
    try:
        answer = await unless_revoked(
            sender.resume_answer(settings.answer_timeout, parsed.call_home.codec),
            delivery.revocation,
            but=Revoked.CANCELLED,  # the caller is told on this stream, when it is agreed
        )
    except StreamSupersededError as error:
        return Superseded(request_id=parsed.request_id, reason=str(error))
    except PublishError as error:
        return _unanswered(parsed, sender, error, tools)
    if answer is None:
        return handed_back_or_superseded(delivery, parsed.request_id)
    progress.handshaken = True
    planned = plan(
        answer,
        engine.resume,
        max_crashes=settings.max_crashes,
        expired=parsed.expired(now_ns),
        crashes=delivery.crashes,
    )
    if isinstance(planned, GiveUp):
        return await _decline(delivery, parsed, sender, planned)
    if planned.delivered:
        tools.service.count_resumed()
    return _session(engine, planned)


def _session(engine: Engine, start: Start) -> Session:
    resumption = Resumption(
        able=engine.resume is not None, base=start.delivered, replay=Replay(start)
    )
    return Session(start=start, resumption=resumption, agreed=time.monotonic())


def _unanswered(
    parsed: ParsedRequest, sender: ResponseSender, error: PublishError, tools: ExchangeTools
) -> Finished:
    """No answer: the stream is over, or the requester stands still."""
    error_type = None if error.client_gone else ErrorType.RESPONSE_STREAM
    if error_type is not None:
        tools.metrics.count_error(error_type)
    return Finished(
        outcome=Outcome.CLIENT_GONE if error.client_gone else Outcome.REQUESTER_UNREACHABLE,
        request_id=parsed.request_id,
        reason="the stream is over" if error.client_gone else str(error),
        error_type=error_type,
        caller=sender.address,
        dials=sender.dials,
    )


async def _decline(
    delivery: Delivery, parsed: ParsedRequest, sender: ResponseSender, why: GiveUp
) -> Finished:
    delivery.revocation.on_revoked(lambda _: sender.end_linger())
    told = await say(sender, why.error, parsed.call_home.codec)
    return Finished(
        outcome=why.outcome,
        request_id=parsed.request_id,
        reason=why.error.message,
        caller=sender.address,
        dials=sender.dials,
        caller_told=told,
    )
