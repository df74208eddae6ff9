import pytest

from benchmarks.machine import cpu_model, plain_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.1.0-29-provider-amd64", "6.1.0"),
        ("nats-server: v2.15.1", "2.15.1"),
        ("6.18.44", "6.18.44"),
        ("", "unknown"),
    ],
)
def test_a_version_is_its_numbers(text: str, version: str) -> None:
    assert plain_version(text) == version


def test_the_processor_is_the_first_that_is_named() -> None:
    info = "processor\t: 0\nmodel name\t: A Processor\n\nprocessor\t: 1\nmodel name\t: Another\n"
    assert cpu_model(info) == "A Processor"
    assert cpu_model("") != ""
