"""What becomes of a message when its delivery has ended: decided here, done elsewhere.

One pure function, tested as a table (overview section 3, rule 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from dialback.outcomes import Ending, Finished, HandedBack, Outcome, Superseded


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


_MAX_DOUBLINGS: Final = 64  # any delay is at its cap by then, and a float still holds it
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
    ending: Ending, *, number: int, policy: RetryPolicy, jitter: Callable[[], float]
) -> Disposition:
    """Return what becomes of the message.

    Args:
        ending: How the delivery ended.
        number: Which delivery it was, from 1.
        policy: When to give up.
        jitter: Returns a factor round 1 for delays.
    """
    match ending:
        case Superseded():
            return Leave()
        case HandedBack(delay=delay):
            return Nak(delay, retry=False)
        case Finished(outcome=Outcome.REQUESTER_UNREACHABLE) if number < policy.max_attempts:
            return Nak(retry_delay(number, policy) * jitter(), retry=True)
        case Finished(outcome=Outcome.REQUESTER_GONE) if policy.discard_gone:
            return Ack()
        case Finished(outcome=outcome):
            return DeadLetter() if outcome in _DEAD_LETTERED else Ack()
    assert_never(ending)


def retry_delay(number: int, policy: RetryPolicy) -> float:
    """Return the seconds to wait after delivery ``number``, before jitter."""
    doublings = min(number - 1, _MAX_DOUBLINGS)
    return min(policy.max_retry_delay, policy.retry_delay * 2.0**doublings)
