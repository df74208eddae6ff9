import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Metric,
    Summary,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from typing_extensions import override

from dialback.metrics.text_format import render

VECTORS = Path(__file__).parents[2] / "vectors" / "metrics"


class Replay(Collector):
    """Gives out what a text said, in the reverse order."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))

    @override
    def collect(self) -> Iterable[Metric]:
        return reversed(self._families)


@pytest.mark.parametrize("name", ["1.6.1-start.txt", "1.6.1-after-errors.txt"])
def test_a_dynamo_exposition_comes_back_byte_for_byte(name: str) -> None:
    captured = (VECTORS / name).read_text()
    registry = CollectorRegistry()
    registry.register(Replay(captured))
    assert render(registry) == captured.encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (21.0, "21"),
        (-2.0, "-2"),
        (0.771815916, "0.771815916"),
        (3.8033974219999998, "3.8033974219999998"),
        (1e-07, "0.0000001"),
        (1_700_000_000.25, "1700000000.25"),
        (1e22, "10000000000000000000000"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_are_written_as_rust_does(value: float, text: str) -> None:
    registry = CollectorRegistry()
    Gauge("x", "X", registry=registry).set(value)
    assert render(registry).decode() == f"# HELP x X\n# TYPE x gauge\nx {text}\n"


def test_a_histogram_is_buckets_then_sum_then_count_with_le_last() -> None:
    registry = CollectorRegistry()
    family = Histogram("wait", "W", ["zone", "area"], buckets=(0.00001, 1), registry=registry)
    family.labels("b", "n").observe(0.5)
    family.labels("a", "n").observe(2)
    assert render(registry).decode().splitlines() == [
        "# HELP wait W",
        "# TYPE wait histogram",
        'wait_bucket{area="n",zone="a",le="0.00001"} 0',
        'wait_bucket{area="n",zone="a",le="1"} 0',
        'wait_bucket{area="n",zone="a",le="+Inf"} 1',
        'wait_sum{area="n",zone="a"} 2',
        'wait_count{area="n",zone="a"} 1',
        'wait_bucket{area="n",zone="b",le="0.00001"} 0',
        'wait_bucket{area="n",zone="b",le="1"} 1',
        'wait_bucket{area="n",zone="b",le="+Inf"} 1',
        'wait_sum{area="n",zone="b"} 0.5',
        'wait_count{area="n",zone="b"} 1',
    ]


def test_families_are_sorted_by_exposed_name_without_creation_times() -> None:
    registry = CollectorRegistry()
    Summary("s", "S", registry=registry)
    Gauge("last_created", "A gauge's own name is kept", registry=registry)
    Counter("c", "C", registry=registry)
    Gauge("c_open", "O", registry=registry)
    assert [line for line in render(registry).decode().splitlines() if line[0] != "#"] == [
        "c_open 0",
        "c_total 0",
        "last_created 0",
        "s_sum 0",
        "s_count 0",
    ]


def test_types_the_format_lacks_become_gauges() -> None:
    registry = CollectorRegistry()
    Info("build", "B", registry=registry).info({"version": "1"})
    Enum("state", "S", states=["up"], registry=registry)
    registry.register(Replay("old 1\n"))
    assert render(registry).decode().splitlines() == [
        "# HELP build_info B",
        "# TYPE build_info gauge",
        'build_info{version="1"} 1',
        "# HELP old ",
        "# TYPE old untyped",
        "old 1",
        "# HELP state S",
        "# TYPE state gauge",
        'state{state="up"} 1',
    ]


def test_help_and_label_values_are_escaped() -> None:
    registry = CollectorRegistry()
    Gauge("x", 'a\\b\n"c"', ["l"], registry=registry).labels('a\\b\n"ü"').set(1)
    assert render(registry).decode().splitlines() == [
        '# HELP x a\\\\b\\n"c"',
        "# TYPE x gauge",
        'x{l="a\\\\b\\n\\"ü\\""} 1',
    ]


def test_a_family_without_series_is_not_shown() -> None:
    registry = CollectorRegistry()
    Counter("c", "C", ["l"], registry=registry)
    assert render(registry) == b""
