"""Who may serve a response stream: decided when a worker dials, pure.

Source: overview section 4. A worker that announced itself (an offer) yields to one of a higher
rank only. One that did not is single-use: before the first item the newest dial wins,
afterwards the subject is spent (protocol section 5.6).
"""

from dataclasses import dataclass
from enum import Enum

from dialback.transport.messages import ResumeOffer


class Verdict(Enum):
    """What becomes of a dial."""

    SERVES = "serves"
    """It is the stream's worker from now on; another connection that is open is not."""
    OUTRANKED = "outranked"
    """A worker of the same or a higher rank is on the line."""
    SPENT = "spent"
    """The subject has served."""
    NOT_FIRST = "not first"
    """It took itself for the first worker; what the stream has is the next delivery's to ask."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The connection that serves a stream now.

    Attributes:
        offer: What its worker announced, or ``None`` for one that is single-use.
    """

    offer: ResumeOffer | None


def judge(
    dial: ResumeOffer | None, serving: Serving | None, delivered: int, *, dialled: bool
) -> Verdict:
    """Decide whether a dial may serve the stream.

    When no connection is open any announced dial may, even one of a lower rank than was seen
    before: it begins at what has been delivered, and yields as soon as a higher one dials.

    Args:
        dial: What the worker that dials announced, if anything.
        serving: The connection that is open, if one is.
        delivered: Items received so far.
        dialled: Whether any worker has served the stream, even without an item.
    """
    verdict = _judge_rank(dial, serving, delivered)
    if verdict is Verdict.SERVES and dialled and dial is not None and dial.fresh:
        return Verdict.NOT_FIRST
    return verdict


def _judge_rank(dial: ResumeOffer | None, serving: Serving | None, delivered: int) -> Verdict:
    if dial is None or (serving is not None and serving.offer is None):
        return Verdict.SERVES if delivered == 0 else Verdict.SPENT
    if serving is None or serving.offer is None:
        return Verdict.SERVES
    if dial.rank <= serving.offer.rank:
        return Verdict.OUTRANKED
    if delivered and dial.unable and dial.epoch != serving.offer.epoch:
        # A new consumer delivers again what runs. This one could do nothing but break it off.
        return Verdict.OUTRANKED
    return Verdict.SERVES
