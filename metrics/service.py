"""dialback's own series: what Dynamo's names cannot say. Never a label more on Dynamo's.

Label sets are closed and given by the caller; every series exists at 0 from the start.
No I/O here.
"""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter

from dialback.metrics import names
from dialback.metrics.names import PublishCause, PublishStage, PullErrorKind
from dialback.metrics.registration import Distribution, Tallies, counter, gauge, histogram


class ServiceMetrics:
    """The queue-side series of one worker process. One instance per registry.

    Attributes:
        last_pull: Unix time in seconds of the last pull that the server answered; 0.0
            before the first.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        outcomes: Iterable[str],
        delivery_ends: Iterable[str],
        version: str,
        slots: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Register every series at 0; all slots are free.

        Args:
            registry: Where the series go.
            outcomes: Every way a request can end.
            delivery_ends: Every way a delivery can end.
            version: Version of the running dialback.
            slots: How many requests the worker serves at once.
            wall_clock: Unix time in seconds, for the last successful pull.

        Raises:
            ValueError: The registry has the series already.
        """
        outcomes = tuple(outcomes)
        self._wall_clock = wall_clock
        self._slot_count = slots
        self.last_pull = 0.0
        self._outcomes = Tallies(registry, names.OUTCOMES, "outcome", outcomes)
        self._dead_letters = Tallies(registry, names.DEAD_LETTERS, "reason", outcomes)
        self._delivery_ends = Tallies(registry, names.DELIVERIES, "end", delivery_ends)
        self._pull_errors = Tallies(registry, names.PULL_ERRORS, "kind", PullErrorKind)
        self._publish_failures = _publish_failures(registry)
        self._register_unlabelled(registry)
        self._register_slots(registry)
        gauge(registry, names.BUILD_INFO, ("version",)).labels(version).set(1)

    def _register_unlabelled(self, registry: CollectorRegistry) -> None:
        self._ack_unconfirmed = counter(registry, names.ACK_UNCONFIRMED)
        self._heartbeat_late = counter(registry, names.HEARTBEAT_LATE)
        self._dial_retries = counter(registry, names.DIAL_RETRIES)
        self._reconnects = counter(registry, names.RECONNECTS)
        self._queue_wait = Distribution(registry, names.QUEUE_WAIT, {})
        self._streams_resumed = counter(registry, names.STREAMS_RESUMED)
        self._replayed_items = counter(registry, names.REPLAYED_ITEMS)
        self._handover = histogram(registry, names.HANDOVER)
        self._drain_state = gauge(registry, names.DRAIN_STATE)
        last_pull = gauge(registry, names.LAST_PULL_SUCCESS)
        last_pull.set_function(lambda: self.last_pull)

    def _register_slots(self, registry: CollectorRegistry) -> None:
        # Read when they are asked for: they change twice with every delivery.
        self._slots_busy = 0
        family = gauge(registry, names.SLOTS, ("state",))
        family.labels("busy").set_function(lambda: self._slots_busy)
        family.labels("free").set_function(lambda: max(0, self._slot_count - self._slots_busy))

    def count_outcome(self, outcome: str) -> None:
        """Count one request that ended.

        Raises:
            KeyError: The outcome is not in the set given at construction.
        """
        self._outcomes.count(outcome)

    def count_delivery_end(self, end: str) -> None:
        """Count one delivery that ended, whether its request did or not.

        Raises:
            KeyError: The end is not in the set given at construction.
        """
        self._delivery_ends.count(end)

    def count_publish_failure(self, stage: PublishStage, cause: PublishCause) -> None:
        """Count one response stream that could not be written to its end."""
        self._publish_failures[stage, cause].inc()

    def count_dead_letter(self, outcome: str) -> None:
        """Count one request that was dead-lettered, its outcome being the reason.

        Raises:
            KeyError: The outcome is not in the set given at construction.
        """
        self._dead_letters.count(outcome)

    def count_ack_unconfirmed(self) -> None:
        """Count one acknowledgement that the server did not confirm in time."""
        self._ack_unconfirmed.inc()

    def count_heartbeat_late(self) -> None:
        """Count one in-progress heartbeat that was sent later than planned."""
        self._heartbeat_late.inc()

    def count_pull_error(self, kind: str) -> None:
        """Count one failed pull.

        Raises:
            KeyError: The kind is no :class:`~dialback.metrics.names.PullErrorKind`.
        """
        self._pull_errors.count(kind)

    def count_dial_retry(self) -> None:
        """Count one dial that is tried again within a delivery."""
        self._dial_retries.inc()

    def count_resumed(self) -> None:
        """Count one response stream that was begun by another worker."""
        self._streams_resumed.inc()

    def count_replayed(self, items: int) -> None:
        """Count items that an engine yielded again and that were not written."""
        self._replayed_items.inc(items)

    def observe_handover(self, seconds: float) -> None:
        """Record how long a requester went without an item while workers changed, in seconds."""
        self._handover.observe(max(0.0, seconds))

    def observe_queue_wait(self, seconds: float) -> None:
        """Record how long a request lay in the queue, in seconds; negative counts as 0."""
        self._queue_wait.observe(max(0.0, seconds))

    def set_slots_busy(self, n: int) -> None:
        """Say how many slots serve a request now; the others are free."""
        self._slots_busy = n

    def set_draining(self, draining: bool) -> None:
        """Say whether the worker takes no more work."""
        self._drain_state.set(draining)

    def pulled(self) -> None:
        """Note that the server answered a pull just now."""
        self.last_pull = self._wall_clock()

    def count_reconnect(self) -> None:
        """Count one re-established NATS connection."""
        self._reconnects.inc()


def _publish_failures(
    registry: CollectorRegistry,
) -> dict[tuple[PublishStage, PublishCause], Counter]:
    family = counter(registry, names.PUBLISH_FAILURES, ("stage", "cause"))
    return {
        (stage, cause): family.labels(stage, cause)
        for stage in PublishStage
        for cause in PublishCause
    }
