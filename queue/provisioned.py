"""What a queue is set to, where that differs from what is wanted, and what to make of it.

Pure: the server's answers in, words for an operator out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dialback.queue.inspection import LaneState
from dialback.queue.topology import (
    Endpoint,
    Lane,
    QueueSettings,
    differences,
    lane_consumer,
    requests_stream,
)

_NS: Final = 1_000_000_000
_NEARLY_FULL: Final = 0.9
_STREAM_KEYS: Final = (
    "subjects",
    "retention",
    "discard",
    "storage",
    "num_replicas",
    "max_msgs",
    "max_age",
    "allow_direct",
)
_CONSUMER_KEYS: Final = (
    "filter_subject",
    "ack_policy",
    "ack_wait",
    "max_deliver",
    "max_ack_pending",
    "max_waiting",
    "max_batch",
)


def shown_settings(
    config: Mapping[str, Any], consumers: Sequence[Mapping[str, Any] | None]
) -> dict[str, Any]:
    """Return what a queue is set to, in seconds, bytes and counts."""
    nothing: Mapping[str, Any] = {}
    consumer: Mapping[str, Any] = next((found["config"] for found in consumers if found), nothing)
    return {
        "retention": config["retention"],
        "discard": config["discard"],
        "storage": config["storage"],
        "replicas": config["num_replicas"],
        "max_messages": config["max_msgs"],
        "max_bytes": config["max_bytes"],
        "max_message_bytes": config["max_msg_size"],
        "max_age_seconds": config["max_age"] / _NS,
        "duplicate_window_seconds": config["duplicate_window"] / _NS,
        "ack_wait_seconds": consumer["ack_wait"] / _NS if consumer else None,
        "max_ack_pending": consumer.get("max_ack_pending"),
    }


def drift_of(
    endpoint: Endpoint,
    wanted: QueueSettings,
    config: Mapping[str, Any],
    consumers: Sequence[Mapping[str, Any] | None],
) -> tuple[str, ...]:
    """Return one sentence for each setting that is not as wanted."""
    stream = requests_stream(endpoint, wanted)
    found = [f"stream: {text}" for text in differences(stream, config, _STREAM_KEYS)]
    window, want_window = config["duplicate_window"] / _NS, stream["duplicate_window"] / _NS
    if window != want_window:
        found.append(f"stream: duplicate_window is {window:g} s, wanted {want_window:g} s")
    for lane, consumer in zip(Lane, consumers, strict=True):
        if consumer is None:
            found.append(f"consumer {lane}: missing")
            continue
        wants = lane_consumer(endpoint, lane, wanted)
        texts = differences(wants, consumer["config"], _CONSUMER_KEYS)
        found += [f"consumer {lane}: {text}" for text in texts]
        if consumer["config"].get("backoff"):
            found.append(f"consumer {lane}: backoff is set, which shortens a live worker's lease")
    return tuple(found)


def advice_for(
    stream: Mapping[str, Any], lanes: Sequence[LaneState], *, has_dead_stream: bool
) -> tuple[str, ...]:
    """Return one sentence for each thing that an operator should know or do."""
    found: list[str] = []
    missing = [state.lane.value for state in lanes if not state.has_consumer]
    if missing:
        found.append(
            f"nobody can take requests of lane {', '.join(missing)}: there is no consumer;"
            " the next worker that starts creates it"
        )
    if not has_dead_stream:
        found.append("there is no stream of dead letters; the next worker that starts creates it")
    for state in lanes:
        if state.paused:
            found.append(f"lane {state.lane} is paused")
        elif state.queued and not state.waiting:
            found.append(
                f"{state.queued} queued in lane {state.lane} and no worker asks for one:"
                " none is running, or all slots are taken"
            )
    return (*found, *_stream_advice(stream))


def _stream_advice(stream: Mapping[str, Any]) -> list[str]:
    config, messages = stream["config"], stream["state"]["messages"]
    found: list[str] = []
    cluster: Mapping[str, Any] = stream.get("cluster") or {}
    if cluster.get("name") and config["num_replicas"] == 1:
        found.append("one replica in a cluster: with its node the queue is gone; use 3")
    limit = config["max_msgs"]
    if limit > 0 and messages >= limit * _NEARLY_FULL:
        found.append(f"{messages} of at most {limit} requests: new ones will be refused")
    return found
