"""How to pull, and what the pull loop reports. Plain values."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from dialback.metrics.names import PullErrorKind

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """How to pull.

    Attributes:
        expires: Seconds a standing pull lives.
        brief: Seconds a standing pull lives that may have to end sooner: one for several
            messages, or one that cannot be cancelled.
        heartbeat: Seconds between the server's idle heartbeats; two missed ones are a fault.
        max_batch: Most messages in one pull; the consumer refuses more.
    """

    expires: float = 30.0
    brief: float = 2.0
    heartbeat: float = 5.0
    max_batch: int = 64

    def standing(self, batch: int, *, brief: bool) -> dict[str, int]:
        """Return the request of a standing pull for so many messages, as JetStream wants it."""
        if brief:  # its end is the sign of life
            return {"batch": batch, "expires": round(self.brief * _NS)}
        return {
            "batch": batch,
            "expires": round(self.expires * _NS),
            "idle_heartbeat": round(self.heartbeat * _NS),
        }


@dataclass(slots=True)
class PullEvents:
    """What the pull loop reports.

    Attributes:
        pulled: A pull was answered or a heartbeat came: pulling works.
        failed: A pull went wrong.
        handed_back: A message was given back: no slot was free for it, or it came too late.
    """

    pulled: Callable[[], None] = field(default=lambda: None)
    failed: Callable[[PullErrorKind], None] = field(default=lambda _: None)
    handed_back: Callable[[], None] = field(default=lambda: None)
