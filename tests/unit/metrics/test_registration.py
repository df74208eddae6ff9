import pytest
from prometheus_client import CollectorRegistry

from dialback.metrics.names import Series
from dialback.metrics.registration import Tally, counter

SERIES = Series("things_total", "Things that were counted")


def test_a_tally_is_exposed_as_the_counter_it_is() -> None:
    registry, reference = CollectorRegistry(), CollectorRegistry()
    tally = Tally(registry, SERIES, {"kind": "a"})
    tally.value += 7
    counter(reference, SERIES, ("kind",)).labels("a").inc(7)
    [ours], [theirs] = registry.collect(), reference.collect()
    assert (ours.name, ours.documentation, ours.type) == (
        theirs.name,
        theirs.documentation,
        theirs.type,
    )
    assert ours.samples[0] == theirs.samples[0]
    assert ours.samples[0].value == 7


def test_a_tally_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    Tally(registry, SERIES, {"kind": "a"})
    assert registry.get_sample_value("things_total", {"kind": "a"}) == 0


def test_a_name_that_is_taken_is_refused() -> None:
    registry = CollectorRegistry()
    Tally(registry, SERIES, {})
    with pytest.raises(ValueError, match="[Dd]uplicated"):
        Tally(registry, SERIES, {})
    with pytest.raises(ValueError, match="[Dd]uplicated"):
        counter(registry, SERIES)
