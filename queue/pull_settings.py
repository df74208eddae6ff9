"""How to pull, and what the pull loop reports. Plain values."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dialback.metrics.names import PullErrorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """How to pull.

    Attributes:
        expires: Seconds a lingering pull lives.
        heartbeat: Seconds between the server's idle heartbeats; two missed ones are a fault.
        max_batch: Most messages in one pull; the consumer refuses more.
    """

    expires: float = 30.0
    heartbeat: float = 5.0
    max_batch: int = 64


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
