"""Turn a :class:`~dialback.metrics.names.Series` into a registered collector.

The one place where names meet prometheus_client, so that every series of a closed label set
exists at 0 from the start and the hot path holds bound children.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import (
    floatToGoString,  # pyright: ignore[reportUnknownVariableType] -- not typed
)
from typing_extensions import override

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


class Count:
    """What its owner counts in plain attribute additions.

    Attributes:
        value: The count; may only grow.
    """

    def __init__(self) -> None:
        self.value = 0


class Tally(Count, Collector):
    """A counter of one series that is a :class:`Count`.

    For what is counted with every item and request: ``Counter.inc`` takes a lock and costs as much
    as writing an item's JSON. Only for values that one thread changes.
    """

    def __init__(
        self, registry: CollectorRegistry, series: Series, labels: Mapping[str, str]
    ) -> None:
        """Register the series at 0.

        Raises:
            ValueError: The registry already has it.
        """
        super().__init__()
        self._series = series
        self._labels = dict(labels)
        registry.register(self)

    @override
    def collect(self) -> Iterable[Metric]:
        """Return the series as it is now."""
        family = self._family()
        family.add_metric(tuple(self._labels.values()), self.value)
        return [family]

    def describe(self) -> Iterable[Metric]:
        """Return the family; a registry asks for it to find names that it has already."""
        return [self._family()]

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(
            self._series.name, self._series.documentation, labels=tuple(self._labels)
        )


class Tallies(Collector):
    """A counter with one label whose values are a closed set; see :class:`Tally`."""

    def __init__(
        self, registry: CollectorRegistry, series: Series, label: str, values: Iterable[str]
    ) -> None:
        """Register the series of every value at 0.

        Raises:
            ValueError: The registry already has the family.
        """
        self._series = series
        self._label = label
        self._counts = {str(value): 0 for value in values}
        registry.register(self)

    def count(self, value: str) -> None:
        """Add one.

        Raises:
            KeyError: The value is not in the set.
        """
        self._counts[value] += 1

    @override
    def collect(self) -> Iterable[Metric]:
        """Return the series as they are now."""
        family = self._family()
        for value, count in self._counts.items():
            family.add_metric((value,), count)
        return [family]

    def describe(self) -> Iterable[Metric]:
        """Return the family; a registry asks for it to find names that it has already."""
        return [self._family()]

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(
            self._series.name, self._series.documentation, labels=(self._label,)
        )


def _bound(value: float) -> str:
    """Return a bucket's label as the library writes it."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


class Distribution(Collector):
    """A histogram of one series that is filled in plain Python; see :class:`Tally`.

    For what is observed with every request: ``Histogram.observe`` takes two locks and walks along
    the buckets.
    """

    def __init__(
        self, registry: CollectorRegistry, series: Series, labels: Mapping[str, str]
    ) -> None:
        """Register the series, empty.

        Raises:
            ValueError: The registry already has it.
        """
        self._series = series
        self._labels = dict(labels)
        self._counts = [0] * (len(series.buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count one observation in the first bucket whose bound it does not exceed."""
        self._counts[bisect_left(self._series.buckets, value)] += 1
        self._sum += value

    @override
    def collect(self) -> Iterable[Metric]:
        """Return the series as it is now."""
        bounds = [*map(_bound, self._series.buckets), "+Inf"]
        family = self._family()
        family.add_metric(
            tuple(self._labels.values()),
            list(zip(bounds, accumulate(self._counts), strict=True)),
            self._sum,
        )
        return [family]

    def describe(self) -> Iterable[Metric]:
        """Return the family; a registry asks for it to find names that it has already."""
        return [self._family()]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(
            self._series.name, self._series.documentation, labels=tuple(self._labels)
        )
