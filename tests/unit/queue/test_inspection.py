from typing import Any

import orjson
import pytest

from dialback.ingress.request import request_id_for
from dialback.queue.api import StoredMessage
from dialback.queue.inspection import LaneState, lane_of, time_ns
from dialback.queue.inspector import requeue_headers
from dialback.queue.letter_search import AmbiguousIdError
from dialback.queue.provisioned import advice_for, drift_of, shown_settings
from dialback.queue.reading import (
    PayloadFacts,
    letter,
    payload_facts,
    queued_message,
)
from dialback.queue.topology import (
    Endpoint,
    Lane,
    QueueSettings,
    lane_consumer,
    requests_stream,
)
from support.frames import request_payload, tcp_info

ENDPOINT = Endpoint("demo", "backend", "generate")
NOON = "2026-11-25T12:00:00Z"
NOON_NS = 1_795_608_000_000_000_000
_NS = 1_000_000_000


def _stored(payload: bytes = b"", headers: dict[str, str] | None = None) -> StoredMessage:
    subject = ENDPOINT.request_subject(Lane.HIGH, "req-1")
    return StoredMessage(
        subject=subject, sequence=7, time=NOON, headers=headers or {}, payload=payload
    )


# --- times and subjects -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (NOON, NOON_NS),
        ("2026-11-25T12:00:00.5Z", NOON_NS + 500_000_000),
        ("2026-11-25T12:00:00.123456789Z", NOON_NS + 123_456_789),
        ("2026-11-25T13:00:00.000000001+01:00", NOON_NS + 1),
    ],
)
def test_the_servers_times_are_read_to_the_nanosecond(text: str, nanoseconds: int) -> None:
    assert time_ns(text) == nanoseconds


def test_a_text_that_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="'yesterday' is no RFC 3339 time"):
        time_ns("yesterday")


@pytest.mark.parametrize(
    ("subject", "lane"),
    [
        ("dialback.demo.backend.generate.jobs.low.req-1", "low"),
        ("dialback.jobs.high.jobs.jobs.normal.req-1", "normal"),
        ("dialback.demo.backend.generate.dead.req-1", ""),
        ("dialback.demo.backend.generate.jobs.fast.req-1", ""),
        ("dialback.demo.backend.generate.jobs", ""),
        ("", ""),
    ],
)
def test_the_lane_is_read_from_its_place_in_the_subject(subject: str, lane: str) -> None:
    assert lane_of(subject) == lane


# --- requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "facts"),
    [
        (request_payload("10.0.0.1:9", 1), PayloadFacts("req-1", "10.0.0.1:9", "json")),
        (
            request_payload("10.0.0.1:9", 1, payload_codec=None),
            PayloadFacts("req-1", "10.0.0.1:9", "json"),
        ),
        (
            request_payload("10.0.0.1:9", 1, payload_codec="cbor"),
            PayloadFacts("req-1", "10.0.0.1:9", "cbor"),
        ),
        (request_payload("", 1, info="no json"), PayloadFacts("req-1", "", "json")),
        (request_payload("", 1, connection_info=7, id=7), PayloadFacts("", "", "json")),
        (request_payload("10.0.0.1:9", 1)[:-1], PayloadFacts("req-1", "10.0.0.1:9", "json")),
        (b"garbage", PayloadFacts()),
        (b"", PayloadFacts()),
        (b"\0" * 7 + b"\x02" + b"\0" * 16 + b'"\xff', PayloadFacts()),
    ],
)
def test_what_can_be_read_of_a_payload_is_read(payload: bytes, facts: PayloadFacts) -> None:
    assert payload_facts(payload) == facts


def test_an_unreadable_request_has_the_id_that_a_worker_would_use() -> None:
    now = NOON_NS
    found = queued_message(_stored(b"garbage"), stream="S", now_ns=now, delivered_up_to=None)
    assert found.request_id == request_id_for(found.delivery)
    assert found.request_id == f"seq-7-{NOON_NS}"
    stored = _stored(b"garbage", {"request-id": "r-9"})
    named = queued_message(stored, stream="S", now_ns=now, delivered_up_to=None)
    assert named.request_id == request_id_for(named.delivery) == "r-9"


@pytest.mark.parametrize(
    ("delivered_up_to", "delivered"), [(None, None), (6, False), (7, True), (8, True)]
)
def test_what_the_lane_has_delivered_is_in_flight(
    delivered_up_to: int | None, delivered: bool | None
) -> None:
    found = queued_message(
        _stored(), stream="S", now_ns=NOON_NS + 3 * _NS, delivered_up_to=delivered_up_to
    )
    assert found.delivered is delivered
    assert found.age == 3.0


def test_the_earlier_deadline_counts_while_a_request_is_queued() -> None:
    headers = {
        "Dialback-Deadline": str(NOON_NS + 60 * _NS),
        "Dialback-Start-By": str(NOON_NS + 10 * _NS),
    }
    stored = _stored(b"", headers)
    found = queued_message(stored, stream="S", now_ns=NOON_NS + 4 * _NS, delivered_up_to=0)
    assert found.deadline_left == 6.0


def test_a_deadline_that_is_no_number_is_none() -> None:
    stored = _stored(b"", {"Dialback-Deadline": "soon"})
    found = queued_message(stored, stream="S", now_ns=NOON_NS, delivered_up_to=0)
    assert found.deadline_left is None


# --- dead letters -----------------------------------------------------------------------


def test_a_letter_without_our_headers_is_shown_all_the_same() -> None:
    stored = StoredMessage(
        subject=ENDPOINT.dead_subject("x"), sequence=3, time=NOON, headers={}, payload=b"?"
    )
    found = letter(stored, stream="DEAD", now_ns=NOON_NS + _NS)
    assert (found.request_id, found.deliveries, found.lane, found.age) == ("x", 0, "", 1.0)


def test_a_letter_tells_its_lane_and_its_history() -> None:
    history = [{"outcome": "poison", "reason": "?", "worker": "w", "deliveries": 3}]
    stored = _stored(
        request_payload("10.0.0.1:9", 1),
        {
            "Dialback-Origin-Subject": ENDPOINT.request_subject(Lane.LOW, "req-1"),
            "Dialback-History": orjson.dumps(history).decode(),
            "Dialback-Deliveries": "4",
        },
    )
    found = letter(stored, stream="DEAD", now_ns=0)
    assert (found.lane, found.history, found.deliveries) == ("low", tuple(history), 4)
    assert (found.caller, found.codec, found.age) == ("10.0.0.1:9", "json", 0.0)


def test_a_requeued_request_has_no_deadline_and_no_order_to_jetstream() -> None:
    headers = {
        "Dialback-Deadline": "1",
        "dialback-start-by": "1",
        "Nats-Expected-Last-Subject-Sequence": "0",
        "nats-msg-id": "old",
        "traceparent": "00-1-2-03",
        "Dialback-Outcome": "invalid",
        "Dialback-Reason": "why",
        "Dialback-Worker": "w-1",
        "Dialback-Deliveries": "2",
    }
    kept = requeue_headers(headers)
    assert sorted(kept) == ["Dialback-History", "traceparent"]
    entry = {"outcome": "invalid", "reason": "why", "worker": "w-1", "deliveries": 2}
    assert orjson.loads(kept["Dialback-History"]) == [entry]


def test_an_ambiguous_id_names_the_candidates_but_not_all_of_a_thousand() -> None:
    few = AmbiguousIdError("ab", ["abc", "abd"])
    assert str(few) == "'ab' means 2 dead letters: abc, abd"
    many = AmbiguousIdError("a", [f"a{n}" for n in range(1000)])
    assert str(many).endswith("a9 and 990 more")
    assert len(many.candidates) == 1000


# --- settings and advice ----------------------------------------------------------------


def _config(**changes: Any) -> dict[str, Any]:
    extra = {"max_bytes": -1, "max_msg_size": -1}
    return requests_stream(ENDPOINT, QueueSettings()) | extra | changes


def _consumers(**changes: Any) -> list[dict[str, Any] | None]:
    made = (lane_consumer(ENDPOINT, lane, QueueSettings()) | changes for lane in Lane)
    return [{"config": config} for config in made]


def test_a_queue_as_provisioned_has_no_drift() -> None:
    assert drift_of(ENDPOINT, QueueSettings(), _config(), _consumers()) == ()


def test_every_setting_that_differs_is_named() -> None:
    config = _config(max_age=60 * _NS, duplicate_window=120 * _NS, num_replicas=3)
    consumers = _consumers(ack_wait=5 * _NS, backoff=[_NS])
    found = drift_of(ENDPOINT, QueueSettings(), config, [*consumers[:2], None])
    assert found == (
        "stream: num_replicas is 3, wanted 1",
        "stream: max_age is 60 s, wanted 0 s",
        "stream: duplicate_window is 120 s, wanted 600 s",
        "consumer high: ack_wait is 5 s, wanted 30 s",
        "consumer high: backoff is set, which shortens a live worker's lease",
        "consumer normal: ack_wait is 5 s, wanted 30 s",
        "consumer normal: backoff is set, which shortens a live worker's lease",
        "consumer low: missing",
    )


def test_settings_are_shown_in_seconds() -> None:
    shown = shown_settings(_config(), _consumers())
    assert (shown["duplicate_window_seconds"], shown["ack_wait_seconds"]) == (600.0, 30.0)
    assert shown_settings(_config(), [None, None, None])["ack_wait_seconds"] is None


def _advice(
    *lanes: LaneState, messages: int = 0, cluster: str | None = None, **config: Any
) -> tuple[str, ...]:
    stream = {"config": _config(**config), "state": {"messages": messages}}
    stream["cluster"] = {"name": cluster} if cluster else {"leader": "one"}
    return advice_for(stream, lanes, has_dead_stream=True)


def test_a_quiet_queue_needs_no_advice() -> None:
    assert _advice(LaneState(lane=Lane.HIGH, has_consumer=True, queued=0, waiting=0)) == ()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (LaneState(lane=Lane.LOW, has_consumer=False), "nobody can take requests of lane low"),
        (LaneState(lane=Lane.LOW, has_consumer=True, paused=True), "lane low is paused"),
        (
            LaneState(lane=Lane.LOW, has_consumer=True, queued=4, waiting=0),
            "4 queued in lane low and no worker asks for one",
        ),
    ],
)
def test_a_lane_that_does_not_move_says_why(state: LaneState, words: str) -> None:
    (advice,) = _advice(state)
    assert advice.startswith(words)


def test_one_replica_in_a_cluster_is_worth_a_word() -> None:
    assert _advice(cluster="prod")[0].startswith("one replica in a cluster")
    assert _advice(cluster="prod", num_replicas=3) == ()


def test_a_queue_that_is_nearly_full_is_worth_a_word() -> None:
    assert _advice(messages=90, max_msgs=100) == (
        "90 of at most 100 requests: new ones will be refused",
    )
    assert _advice(messages=89, max_msgs=100) == ()


def test_a_missing_stream_of_dead_letters_is_worth_a_word() -> None:
    stream = {"config": _config(), "state": {"messages": 0}}
    (advice,) = advice_for(stream, (), has_dead_stream=False)
    assert advice.startswith("there is no stream of dead letters")


def test_addresses_are_shown_as_written() -> None:
    payload = request_payload("", 1, info=tcp_info("no address at all"))
    assert payload_facts(payload).caller == "no address at all"
