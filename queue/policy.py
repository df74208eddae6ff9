"""What becomes of a message when its delivery has ended: decided here, done elsewhere.

One pure function, tested as a table (overview section 3, rule 3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from dialback.outcomes import Ending, Finished, HandedBack, Outcome, Superseded
from dialback.transport.request_headers import DEADLINE_HEADER, START_BY_HEADER


@dataclass(frozen=True, slots=True)
class Ack:
    """The request ended: remove the message, confirmed."""


@dataclass(frozen=True, slots=True)
class Nak:
    """Another delivery is to try.

    Attributes:
        delay: Seconds until then.
        retry: True if this delivery counts as an attempt.
    """

    delay: float
    retry: bool


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Copy the message to the dead-letter stream, then remove it."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Settle nothing: the message is another worker's."""


Disposition: TypeAlias = Ack | Nak | DeadLetter | Leave


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to give up.

    Attributes:
        max_attempts: Deliveries in which the requester may be unreachable.
        retry_delay: Seconds before the second attempt; doubles with each.
        max_retry_delay: Longest delay, in seconds, before jitter.
        discard_gone: Drop a request whose requester is gone instead of dead-lettering it.
    """

    max_attempts: int = 5
    retry_delay: float = 5.0
    max_retry_delay: float = 900.0
    discard_gone: bool = False


_ACK: Final = Ack()
_NS: Final = 1_000_000_000
_MAX_DIGITS: Final = 19  # of Unix nanoseconds
_MAX_DOUBLINGS: Final = 64  # any delay is at its cap by then, and a float still holds it
_MAX_HAND_BACK_DELAY: Final = 30.0  # seconds
_LEAST_LEFT: Final = 1.0  # seconds; with less no further attempt is worth its while
_DEAD_LETTERED: Final = frozenset(
    {
        Outcome.INVALID,
        Outcome.UNSUPPORTED,
        Outcome.POISON,
        Outcome.REQUESTER_GONE,
        Outcome.REQUESTER_UNREACHABLE,
    }
)


def disposition_for(
    ending: Ending,
    *,
    attempts: int,
    left: float | None,
    policy: RetryPolicy,
    jitter: Callable[[], float],
    hand_backs: int = 0,
) -> Disposition:
    """Return what becomes of the message.

    Args:
        ending: How the delivery ended.
        attempts: Earlier deliveries in which the requester could not be reached.
        left: Seconds until the caller gives up, if that is known; see :func:`seconds_left`.
        policy: When to give up.
        jitter: Returns a factor round 1 for delays.
        hand_backs: Earlier deliveries that were handed back.
    """
    match ending:
        case Superseded():
            return Leave()
        case HandedBack(delay=delay, fruitless=True):
            # A requester that takes each call and drops it would keep a worker busy for ever.
            doubled = delay * 2.0 ** min(hand_backs, _MAX_DOUBLINGS)
            return Nak(min(doubled, _MAX_HAND_BACK_DELAY), retry=False)
        case HandedBack(delay=delay):
            return Nak(delay, retry=False)
        case Finished(outcome=Outcome.REQUESTER_UNREACHABLE) if (
            attempts + 1 < policy.max_attempts and (left is None or left > _LEAST_LEFT)
        ):
            delay = retry_delay(attempts + 1, policy) * jitter()
            # Never past the deadline: the other half is for the attempt itself.
            return Nak(delay if left is None else min(delay, left / 2), retry=True)
        case Finished(outcome=Outcome.REQUESTER_GONE) if policy.discard_gone:
            return _ACK
        case Finished(outcome=outcome):
            return DeadLetter() if outcome in _DEAD_LETTERED else _ACK
    assert_never(ending)


def retry_delay(attempt: int, policy: RetryPolicy) -> float:
    """Return the seconds to wait after attempt ``attempt`` (from 1), before jitter."""
    doublings = min(attempt - 1, _MAX_DOUBLINGS)
    return min(policy.max_retry_delay, policy.retry_delay * 2.0**doublings)


def seconds_left(headers: Mapping[str, str], now_ns: int) -> float | None:
    """Return the seconds until the caller gives up, or ``None`` if that is not known.

    A limit for the first item that has passed decides nothing: the item may have come, from an
    earlier worker. If it has not, the next delivery tells the caller so.

    Args:
        headers: The request's NATS headers.
        now_ns: Unix nanoseconds.
    """
    deadline = _time(headers.get(DEADLINE_HEADER, ""))
    start_by = _time(headers.get(START_BY_HEADER, ""))
    limits = [] if deadline is None else [deadline]
    if start_by is not None and start_by > now_ns:
        limits.append(start_by)
    return (min(limits) - now_ns) / _NS if limits else None


def _time(text: str) -> int | None:
    readable = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if readable else None
