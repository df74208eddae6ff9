"""Turn a :class:`~dialback.metrics.names.Series` into a registered collector.

The one place where names meet prometheus_client, so that every series of a closed label set
exists at 0 from the start and the hot path holds bound children.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dialback.metrics.names import Series


def counter(registry: CollectorRegistry, series: Series, labels: Sequence[str] = ()) -> Counter:
    """Register a counter.

    Raises:
        ValueError: The registry already has the series, or a label name is not allowed.
    """
    return Counter(series.name, series.documentation, labels, registry=registry)


def gauge(registry: CollectorRegistry, series: Series, labels: Sequence[str] = ()) -> Gauge:
    """Register a gauge.

    Raises:
        ValueError: The registry already has the series, or a label name is not allowed.
    """
    return Gauge(series.name, series.documentation, labels, registry=registry)


def histogram(registry: CollectorRegistry, series: Series, labels: Sequence[str] = ()) -> Histogram:
    """Register a histogram with the buckets of its series.

    Raises:
        ValueError: The registry already has the series, or a label name is not allowed.
    """
    return Histogram(
        series.name, series.documentation, labels, registry=registry, buckets=series.buckets
    )


def closed_set(
    registry: CollectorRegistry, series: Series, label: str, values: Iterable[str]
) -> dict[str, Counter]:
    """Register a counter with one label and create the series of every value at 0.

    Raises:
        ValueError: The registry already has the series, or the label name is not allowed.
    """
    family = counter(registry, series, (label,))
    return {value: family.labels(value) for value in values}
