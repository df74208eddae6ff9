from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from dialback.metrics.names import PublishCause, PublishStage, PullErrorKind
from dialback.metrics.service import ServiceMetrics

OUTCOMES = ("completed", "requester_gone")
DELIVERY_ENDS = ("settled", "superseded")


def _metrics(registry: CollectorRegistry) -> ServiceMetrics:
    return ServiceMetrics(
        registry,
        outcomes=iter(OUTCOMES),  # an iterator: read once only
        delivery_ends=iter(DELIVERY_ENDS),
        version="1.2.3",
        slots=4,
        wall_clock=lambda: 1_700_000_000.25,
    )


def _series(registry: CollectorRegistry) -> dict[str, float]:
    """Every series but the histogram, as ``name{value,value}``."""
    return {
        f"{sample.name}{{{','.join(sample.labels.values())}}}": sample.value
        for family in registry.collect()
        for sample in family.samples
        if family.type != "histogram" and not sample.name.endswith("_created")
    }


def test_every_series_exists_from_the_start() -> None:
    registry = CollectorRegistry()
    _metrics(registry)
    not_zero = {"dialback_build_info{1.2.3}": 1, "dialback_slots{free}": 4}
    zero = {
        "dialback_ack_unconfirmed_total{}",
        "dialback_dead_letters_total{completed}",
        "dialback_dead_letters_total{requester_gone}",
        "dialback_deliveries_total{settled}",
        "dialback_deliveries_total{superseded}",
        "dialback_dial_retries_total{}",
        "dialback_drain_state{}",
        "dialback_heartbeat_late_total{}",
        "dialback_last_pull_success_timestamp_seconds{}",
        "dialback_outcomes_total{completed}",
        "dialback_outcomes_total{requester_gone}",
        "dialback_publish_failures_total{final,client_disconnect}",
        "dialback_publish_failures_total{final,transport_failure}",
        "dialback_publish_failures_total{response,client_disconnect}",
        "dialback_publish_failures_total{response,transport_failure}",
        "dialback_pull_errors_total{missed_heartbeats}",
        "dialback_pull_errors_total{reconnected}",
        "dialback_pull_errors_total{status}",
        "dialback_reconnects_total{}",
        "dialback_replayed_items_total{}",
        "dialback_slots{busy}",
        "dialback_streams_resumed_total{}",
    }
    assert _series(registry) == dict.fromkeys(zero, 0) | not_zero


COUNTS: list[tuple[Callable[[ServiceMetrics], None], str]] = [
    (lambda m: m.count_outcome("completed"), "dialback_outcomes_total{completed}"),
    (lambda m: m.count_delivery_end("superseded"), "dialback_deliveries_total{superseded}"),
    (
        lambda m: m.count_dead_letter("requester_gone"),
        "dialback_dead_letters_total{requester_gone}",
    ),
    (ServiceMetrics.count_ack_unconfirmed, "dialback_ack_unconfirmed_total{}"),
    (ServiceMetrics.count_heartbeat_late, "dialback_heartbeat_late_total{}"),
    (lambda m: m.count_pull_error("status"), "dialback_pull_errors_total{status}"),
    (
        lambda m: m.count_pull_error(PullErrorKind.RECONNECTED),
        "dialback_pull_errors_total{reconnected}",
    ),
    (ServiceMetrics.count_dial_retry, "dialback_dial_retries_total{}"),
    (ServiceMetrics.count_reconnect, "dialback_reconnects_total{}"),
    (
        lambda m: m.count_publish_failure(PublishStage.FINAL, PublishCause.TRANSPORT_FAILURE),
        "dialback_publish_failures_total{final,transport_failure}",
    ),
]


@pytest.mark.parametrize(("count", "series"), COUNTS, ids=[series for _, series in COUNTS])
def test_a_count_moves_its_own_series_only(
    count: Callable[[ServiceMetrics], None], series: str
) -> None:
    registry = CollectorRegistry()
    metrics = _metrics(registry)
    before = _series(registry)
    count(metrics)
    assert _series(registry) == before | {series: 1}


@pytest.mark.parametrize(
    "count",
    [
        ServiceMetrics.count_outcome,
        ServiceMetrics.count_delivery_end,
        ServiceMetrics.count_dead_letter,
        ServiceMetrics.count_pull_error,
    ],
)
def test_label_sets_are_closed(count: Callable[[ServiceMetrics, str], None]) -> None:
    registry = CollectorRegistry()
    metrics = _metrics(registry)
    before = _series(registry)
    with pytest.raises(KeyError):
        count(metrics, "unheard_of")
    assert _series(registry) == before


@pytest.mark.parametrize(("busy", "free"), [(0, 4), (3, 1), (4, 0), (5, 0)])
def test_slots_that_are_not_busy_are_free(busy: int, free: int) -> None:
    registry = CollectorRegistry()
    _metrics(registry).set_slots_busy(busy)
    series = _series(registry)
    assert series["dialback_slots{busy}"] == busy
    assert series["dialback_slots{free}"] == free


def test_drain_state_follows_both_ways() -> None:
    registry = CollectorRegistry()
    metrics = _metrics(registry)
    metrics.set_draining(True)
    assert _series(registry)["dialback_drain_state{}"] == 1
    metrics.set_draining(False)
    assert _series(registry)["dialback_drain_state{}"] == 0


def test_a_pull_leaves_its_time() -> None:
    registry = CollectorRegistry()
    _metrics(registry).pulled()
    last = _series(registry)["dialback_last_pull_success_timestamp_seconds{}"]
    assert last == 1_700_000_000.25


@pytest.mark.parametrize(
    ("seconds", "smallest_bucket", "recorded"),
    [(0.001, "0.001", 0.001), (3600, "3600.0", 3600), (3601, "+Inf", 3601), (-1, "0.001", 0)],
)
def test_queue_wait_covers_a_millisecond_to_an_hour(
    seconds: float, smallest_bucket: str, recorded: float
) -> None:
    registry = CollectorRegistry()
    _metrics(registry).observe_queue_wait(seconds)
    filled = [
        sample.labels["le"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "dialback_queue_wait_seconds_bucket" and sample.value == 1
    ]
    assert filled[0] == smallest_bucket
    assert registry.get_sample_value("dialback_queue_wait_seconds_sum") == recorded
