import itertools
from typing import Any

import pytest

from dialback.errors import ConfigError
from dialback.queue.topology import (
    Endpoint,
    Lane,
    QueueSettings,
    dead_letter_stream,
    differences,
    lane_consumer,
    requests_stream,
)

ODD_NAMES = ["a", "0", "-", "a_", "c_e_c", "x__", "a-b_c", "a_c_e_e", "e_"]
ENDPOINT = Endpoint("demo", "backend", "generate")


def test_stream_names_are_reversible() -> None:
    for triple in itertools.product(ODD_NAMES, repeat=3):
        endpoint = Endpoint.parse(".".join(triple))
        assert Endpoint.of_stream(endpoint.stream) == endpoint
        assert Endpoint.of_stream(endpoint.dead_stream) == endpoint


def test_no_two_triples_share_a_stream() -> None:
    triples = list(itertools.product(ODD_NAMES, repeat=3))
    assert len({Endpoint(*triple).stream for triple in triples}) == len(triples)


@pytest.mark.parametrize(
    "stream",
    [
        "",
        "JOBS",
        "JOBS_a_C_b",
        "KV_workers",
        "JOBS_A_C_b_E_c",
        "jobs_a_C_b_E_c",
        "JOBS__a_C_b_E_c",
        "JOBS_é_C_b_E_c",
        "JOBS_a_C_b_E_c\n",
        "XJOBS_a_C_b_E_c",
        "JOBS_a_C_b_E_c_C_d",
    ],
)
def test_a_stream_that_is_not_ours_has_no_endpoint(stream: str) -> None:
    assert Endpoint.of_stream(stream) is None


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c.d", "a.b.c.", "demo/backend/generate"])
def test_an_endpoint_has_three_names(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not NAMESPACE\.COMPONENT\.ENDPOINT"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    "text", ["a..c", "Demo.b.c", "a.B.c", "a.b._c", "a.b.c d", "a.b.é", "a.*.c", "a.b.>", "a.b.c\n"]
)
def test_a_name_that_a_slug_would_change_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names are lower-case letters"):
        Endpoint.parse(text)


def test_subjects_of_an_endpoint() -> None:
    assert str(ENDPOINT) == "demo.backend.generate"
    assert ENDPOINT.stream == "JOBS_demo_C_backend_E_generate"
    assert ENDPOINT.dead_stream == "DEAD_demo_C_backend_E_generate"
    assert ENDPOINT.lane_subject(Lane.HIGH) == "dialback.demo.backend.generate.jobs.high.>"
    assert (
        ENDPOINT.request_subject(Lane.LOW, "r-1") == "dialback.demo.backend.generate.jobs.low.r-1"
    )
    assert ENDPOINT.dead_subjects == "dialback.demo.backend.generate.dead.*"
    assert ENDPOINT.dead_subject("r-1") == "dialback.demo.backend.generate.dead.r-1"


def test_the_queue_is_a_work_queue_that_refuses_rather_than_loses() -> None:
    config = requests_stream(ENDPOINT, QueueSettings(replicas=3, max_messages=10))
    assert config["subjects"] == [
        "dialback.demo.backend.generate.jobs.high.>",
        "dialback.demo.backend.generate.jobs.normal.>",
        "dialback.demo.backend.generate.jobs.low.>",
    ]
    wanted: dict[str, Any] = {
        "retention": "workqueue",
        "discard": "new",
        "storage": "file",
        "max_age": 0,
    }
    wanted |= {"num_replicas": 3, "max_msgs": 10, "duplicate_window": 600_000_000_000}
    assert config | wanted == config
    assert config["metadata"] == {
        "dialback.namespace": "demo",
        "dialback.component": "backend",
        "dialback.endpoint": "generate",
    }


def test_dead_letters_are_kept_for_days() -> None:
    config = dead_letter_stream(ENDPOINT, QueueSettings(dead_letter_days=2))
    wanted: dict[str, Any] = {
        "retention": "limits",
        "discard": "new",
        "max_age": 2 * 86_400 * 1_000_000_000,
    }
    assert config | wanted == config
    assert config["subjects"] == ["dialback.demo.backend.generate.dead.*"]


@pytest.mark.parametrize("lane", list(Lane))
def test_a_lane_is_a_durable_consumer_without_backoff_or_delivery_limit(lane: Lane) -> None:
    config = lane_consumer(ENDPOINT, lane, QueueSettings(ack_wait=1.5))
    wanted: dict[str, Any] = {
        "name": lane.value,
        "durable_name": lane.value,
        "ack_policy": "explicit",
    }
    wanted |= {"ack_wait": 1_500_000_000, "max_deliver": -1, "deliver_policy": "all"}
    wanted |= {"max_ack_pending": 20_000, "max_waiting": 8_192, "max_batch": 64}
    assert config | wanted == config
    assert config["filter_subject"] == ENDPOINT.lane_subject(lane)
    assert "backoff" not in config


def test_lanes_are_ordered_most_urgent_first() -> None:
    assert list(Lane) == [Lane.HIGH, Lane.NORMAL, Lane.LOW]


def test_differences_name_what_is_and_what_is_wanted() -> None:
    wanted = {"ack_wait": 30_000_000_000, "retention": "workqueue", "ignored": 1}
    found = {"ack_wait": 5_000_000_000, "retention": "limits", "ignored": 2}
    assert differences(wanted, found, ("ack_wait", "retention")) == (
        "ack_wait is 5 s, wanted 30 s",
        "retention is limits, wanted workqueue",
    )


@pytest.mark.parametrize("found", [{}, {"max_age": 0}, {"max_age": None}])
def test_a_setting_left_out_equals_zero(found: dict[str, int | None]) -> None:
    assert differences({"max_age": 0}, found, ("max_age",)) == ()
