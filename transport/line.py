"""What a requester's stream and the connections of its workers know of each other."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from dialback.transport.messages import ResumeOffer


class LineEnd(Enum):
    """How a worker's connection ended before its final."""

    LOST = "lost"
    SENTINEL = "sentinel"
    """The worker ended its part: on a resumable stream another one goes on."""
    VIOLATION = "violation"
    """It was killed for what it wrote: no other worker comes."""


class Line(Protocol):
    """A worker's connection, as its stream sees it."""

    offer: ResumeOffer | None

    def send(self, frame: bytes) -> None:
        """Write a frame."""

    def hold_back(self, value: bool) -> None:
        """Stop or resume reading."""

    def close_later(self) -> None:
        """The stream is over: give the worker a while to close."""

    def discard(self) -> None:
        """Reset it: its subject is spent."""

    def dismiss(self, delivery: int) -> None:
        """Tell the worker that this delivery serves the stream; drop what it still writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumable:
    """How a stream goes on when its worker is lost.

    Attributes:
        timeout: Seconds to wait for the next worker once an item has arrived.
        history_bytes: Keep the items for the next worker, up to so many bytes; 0 keeps none.
    """

    timeout: float
    history_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """A worker was lost before its stream ended.

    Attributes:
        delivery: Which delivery it served; 0 if it did not say.
        items: Items received until then.
        handed_over: Whether it ended its part in order, for another worker to go on.
        reason: What was seen, half a sentence.
    """

    delivery: int
    items: int
    handed_over: bool
    reason: str
