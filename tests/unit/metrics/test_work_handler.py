from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dialback.metrics import names
from dialback.metrics.names import ErrorType
from dialback.metrics.text_format import render
from dialback.metrics.work_handler import WorkHandlerMetrics

VECTORS = Path(__file__).parents[2] / "vectors" / "metrics"
AT_START = (VECTORS / "1.6.1-start.txt").read_text()
AFTER_ERRORS = (VECTORS / "1.6.1-after-errors.txt").read_text()
ENDPOINT = {
    "dynamo_namespace": "lab",
    "dynamo_component": "backend",
    "dynamo_endpoint": "generate",
    "worker_id": "5b981ce9453bbdfb",
}


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _metrics(
    registry: CollectorRegistry,
    clock: Clock | None = None,
    labels: Mapping[str, str] | None = None,
) -> WorkHandlerMetrics:
    return WorkHandlerMetrics(
        registry,
        namespace="lab",
        component="backend",
        endpoint="generate",
        worker_id="5b981ce9453bbdfb",
        labels=labels,
        clock=clock or Clock(),
    )


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, ENDPOINT | labels)


def _lines(text: str, *, about_errors: bool) -> list[str]:
    return [line for line in text.splitlines() if ("_errors_total" in line) is about_errors]


def test_start_is_what_dynamo_shows_except_errors() -> None:
    registry, clock = CollectorRegistry(), Clock()
    _metrics(registry, clock)
    clock.now = 0.771815916  # the uptime in the capture
    text = render(registry).decode()
    assert _lines(text, about_errors=False) == AT_START.splitlines()


def test_errors_exist_at_zero_from_the_start_unlike_dynamo() -> None:
    registry = CollectorRegistry()
    _metrics(registry)
    assert "errors_total" not in AT_START
    assert len(_lines(render(registry).decode(), about_errors=True)) == 2 + len(ErrorType)
    for error_type in ErrorType:
        assert _value(registry, names.ERRORS.name, error_type=error_type) == 0


def test_errors_look_like_dynamo_once_it_shows_them() -> None:
    registry = CollectorRegistry()
    metrics = _metrics(registry)
    captured = _lines(AFTER_ERRORS, about_errors=True)
    for error_type in ErrorType:
        series = next((line for line in captured if f'error_type="{error_type}"' in line), " 0")
        for _ in range(int(series.rpartition(" ")[2])):
            metrics.count_error(error_type)
    ours = _lines(render(registry).decode(), about_errors=True)
    assert [line for line in ours if 'error_type="serialization"' not in line] == captured


def test_a_request_is_counted_and_in_flight_on_entry() -> None:
    registry = CollectorRegistry()
    _metrics(registry).request_began(412)
    assert _value(registry, names.REQUESTS.name) == 1
    assert _value(registry, names.INFLIGHT_REQUESTS.name) == 1
    assert _value(registry, names.REQUEST_BYTES.name) == 412
    assert _value(registry, f"{names.REQUEST_DURATION.name}_count") == 0


def test_requests_overlap() -> None:
    registry = CollectorRegistry()
    metrics = _metrics(registry)
    metrics.request_began(1)
    metrics.request_began(1)
    assert _value(registry, names.INFLIGHT_REQUESTS.name) == 2
    metrics.request_ended(0.1)
    metrics.request_ended(0.1)
    assert _value(registry, names.INFLIGHT_REQUESTS.name) == 0
    assert _value(registry, names.REQUESTS.name) == 2


def test_a_request_that_ended_has_a_duration_and_is_not_in_flight() -> None:
    registry = CollectorRegistry()
    metrics = _metrics(registry)
    metrics.request_began(1)
    metrics.request_ended(15.0)
    duration = names.REQUEST_DURATION.name
    assert _value(registry, names.INFLIGHT_REQUESTS.name) == 0
    assert _value(registry, f"{duration}_sum") == 15
    assert _value(registry, f"{duration}_bucket", le="10.0") == 0
    assert _value(registry, f"{duration}_bucket", le="20.0") == 1


@pytest.mark.parametrize(("seconds", "recorded"), [(0.25, 0.25), (0.0, 0.0), (-3.0, 0.0)])
def test_transit_is_never_negative(seconds: float, recorded: float) -> None:
    registry = CollectorRegistry()
    _metrics(registry).observe_transit(seconds)
    assert registry.get_sample_value(f"{names.NETWORK_TRANSIT.name}_count") == 1
    assert registry.get_sample_value(f"{names.NETWORK_TRANSIT.name}_sum") == recorded


def test_first_response_is_recorded() -> None:
    registry = CollectorRegistry()
    _metrics(registry).observe_first_response(0.5)
    assert registry.get_sample_value(f"{names.TIME_TO_FIRST_RESPONSE.name}_sum") == 0.5


def test_response_bytes_and_cancellations_add_up() -> None:
    registry = CollectorRegistry()
    metrics = _metrics(registry)
    metrics.response_bytes.value += 100
    metrics.response_bytes.value += 23
    metrics.count_cancellation()
    assert _value(registry, names.RESPONSE_BYTES.name) == 123
    assert _value(registry, names.CANCELLATION.name) == 1


def test_further_labels_appear_on_the_endpoint_only() -> None:
    registry = CollectorRegistry()
    _metrics(registry, labels={"model": "llama"})
    assert _value(registry, names.REQUESTS.name, model="llama") == 0
    assert _value(registry, names.ERRORS.name, model="llama", error_type="generate") == 0
    worker = {"worker_id": ENDPOINT["worker_id"]}
    assert registry.get_sample_value(names.UPTIME.name, worker) == 0
    assert registry.get_sample_value(f"{names.NETWORK_TRANSIT.name}_count") == 0


@pytest.mark.parametrize("name", [*sorted(names.RESERVED_LABELS), "bad-name", "__x", "é", ""])
def test_a_label_name_that_is_taken_or_malformed_is_refused(name: str) -> None:
    registry = CollectorRegistry()
    with pytest.raises(ValueError, match="label"):
        _metrics(registry, labels={name: "x"})
    assert render(registry) == b""


def test_a_registry_takes_one_endpoint() -> None:
    registry = CollectorRegistry()
    _metrics(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        _metrics(registry)
