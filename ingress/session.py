"""What one exchange works with: settings, shared tools, how far it got, what was agreed.

Plain values; no I/O.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from dialback.ingress.answer import ANSWER_TIMEOUT
from dialback.ingress.response import Resumption
from dialback.ingress.resumption import Start
from dialback.metrics.service import ServiceMetrics
from dialback.metrics.work_handler import WorkHandlerMetrics

REFUSAL_WAIT: Final = 0.1
"""Seconds a redelivery waits for the reset of a spent subject (overview rule 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSettings:
    """How the ingress behaves.

    Attributes:
        stop_grace: Seconds an engine has to end after a stop or at shutdown.
        refusal_wait: Seconds a redelivery waits for a refused handshake.
        max_crashes: Workers that may die with a request; then it is poison.
        answer_timeout: Seconds a requester may take to say what it has of a resumable stream.
    """

    stop_grace: float = 1.0
    refusal_wait: float = REFUSAL_WAIT
    max_crashes: int = 3
    answer_timeout: float = ANSWER_TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTools:
    """What every exchange of an ingress shares.

    Attributes:
        metrics: Dynamo's series.
        service: Our own series.
        settings: Grace periods.
        on_healthy: The health notifier, if there is one.
    """

    metrics: WorkHandlerMetrics
    service: ServiceMetrics
    settings: IngressSettings
    on_healthy: Callable[[], None] | None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What the two ends of a resumable stream agreed on.

    Attributes:
        start: Where the engine begins.
        resumption: How the stream may end for another worker to go on with it.
        agreed: Monotonic time of the requester's answer, or of going without one.
    """

    start: Start
    resumption: Resumption
    agreed: float

    def gap(self) -> float:
        """Return the seconds for which the requester has had no item."""
        return self.start.waited + time.monotonic() - self.agreed


class Progress(msgspec.Struct):
    """How far a request has got, for its ending.

    Attributes:
        started: Monotonic time of its entry.
        request_id: Its id, once it is read.
        handshaken: Whether the handshake is written: from then on an end is final.
        items: Items written.
        response_bytes: Bytes of the bodies of items and finals that were to be written.
        first_response: Seconds from entry to prologue.
    """

    started: float
    request_id: str = ""
    handshaken: bool = False
    items: int = 0
    response_bytes: int = 0
    first_response: float | None = None
