import pytest
from prometheus_client import CollectorRegistry

from dialback.metrics.names import Series
from dialback.metrics.registration import Distribution, Tallies, Tally, counter, histogram

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
    with pytest.raises(ValueError, match="uplicated"):
        Tally(registry, SERIES, {})
    with pytest.raises(ValueError, match="uplicated"):
        counter(registry, SERIES)


def test_tallies_are_exposed_as_the_counter_they_are() -> None:
    registry, reference = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies(registry, SERIES, "kind", ("a", "b"))
    tallies.count("a")
    family = counter(reference, SERIES, ("kind",))
    family.labels("a").inc()
    family.labels("b").inc(0)
    [ours], [theirs] = registry.collect(), reference.collect()
    assert (ours.name, ours.documentation, ours.type) == (
        theirs.name,
        theirs.documentation,
        theirs.type,
    )
    wanted = [sample for sample in theirs.samples if not sample.name.endswith("_created")]
    assert ours.samples == wanted
    with pytest.raises(ValueError, match="uplicated"):
        counter(registry, SERIES)


TIMES = Series("times_seconds", "Times that were taken", buckets=(0.1, 0.5, 1.0, 2.5))


def test_a_distribution_is_exposed_as_the_histogram_it_is() -> None:
    registry, reference = CollectorRegistry(), CollectorRegistry()
    ours, theirs = Distribution(registry, TIMES, {"k": "a"}), histogram(reference, TIMES, ("k",))
    for value in (0.0, 0.1, 0.100001, 0.5, 0.75, 2.5, 2.6, 1e9):
        ours.observe(value)
        theirs.labels("a").observe(value)
    [mine], [other] = registry.collect(), reference.collect()
    assert (mine.name, mine.documentation, mine.type) == (
        other.name,
        other.documentation,
        other.type,
    )
    wanted = [sample for sample in other.samples if not sample.name.endswith("_created")]
    key = str
    assert sorted(mine.samples, key=key) == sorted(wanted, key=key)


def test_a_distributions_name_is_taken() -> None:
    registry = CollectorRegistry()
    Distribution(registry, TIMES, {})
    with pytest.raises(ValueError, match="uplicated"):
        histogram(registry, TIMES)
