"""The Prometheus text format 0.0.4, written the way Dynamo's Rust exporter writes it.

An own writer over ``registry.collect()`` instead of corrections on ``generate_latest``: the
library's text differs from Dynamo's in nearly every line (``0.0`` for ``0``, ``le="1.0"``,
``le`` sorted among the labels, ``_count`` before ``_sum``, ``_created`` series), and undoing
that in text would need a parser. Exemplars and timestamps are not written,
and names must be of the classic character set: the format has no quoting for others.
"""

import math
from collections.abc import Iterator
from decimal import Decimal

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

_NAME_SUFFIX = {"counter": "_total", "info": "_info"}
_EXPOSED_TYPE = {"info": "gauge", "stateset": "gauge", "unknown": "untyped"}
_BOUND_LABEL = {"histogram": "le", "summary": "quantile"}
_WITH_CREATION_TIME = frozenset({"counter", "histogram", "summary"})


def render(registry: CollectorRegistry) -> bytes:
    """Return all series as Prometheus text: families sorted by name, labels too, bounds last."""
    families = sorted(registry.collect(), key=_exposed_name)
    return "".join(line for family in families for line in _family_lines(family)).encode()


def _exposed_name(family: Metric) -> str:
    return family.name + _NAME_SUFFIX.get(family.type, "")


def _family_lines(family: Metric) -> Iterator[str]:
    samples = [sample for sample in family.samples if not _is_creation_time(family, sample)]
    if not samples:
        return
    name = _exposed_name(family)
    yield f"# HELP {name} {_escape_help(family.documentation)}\n"
    yield f"# TYPE {name} {_EXPOSED_TYPE.get(family.type, family.type)}\n"
    bound_label = _BOUND_LABEL.get(family.type)
    for sample in sorted(samples, key=lambda sample: _position(sample, bound_label)):
        labels = _labels_text(sample, bound_label)
        yield f"{sample.name}{labels} {_number(sample.value)}\n"


def _is_creation_time(family: Metric, sample: Sample) -> bool:
    return family.type in _WITH_CREATION_TIME and sample.name == f"{family.name}_created"


def _position(sample: Sample, bound_label: str | None) -> tuple[list[tuple[str, str]], int]:
    """Order by series, then buckets, sum, count; sorting is stable, so buckets stay in order."""
    series = sorted(pair for pair in sample.labels.items() if pair[0] != bound_label)
    if sample.name.endswith("_count"):
        return series, 2
    return series, int(sample.name.endswith("_sum"))


def _labels_text(sample: Sample, bound_label: str | None) -> str:
    pairs = sorted(pair for pair in sample.labels.items() if pair[0] != bound_label)
    if bound_label in sample.labels:
        pairs.append((bound_label, _number(float(sample.labels[bound_label]))))
    if not pairs:
        return ""
    return "{" + ",".join(f'{name}="{_escape_value(value)}"' for name, value in pairs) + "}"


def _number(value: float) -> str:
    """Write a number as Rust does: shortest exact digits, no exponent, no ``.0``."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if float(value).is_integer():
        return str(int(value))
    return format(Decimal(repr(float(value))), "f")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_value(text: str) -> str:
    return _escape_help(text).replace('"', '\\"')
