"""The peers' jobs: JSON bodies as large as dialback's requests, in each peer's own form."""

import functools
import uuid
from typing import Any

import orjson

from benchmarks.queue_half.backlog import Message
from benchmarks.queue_half.requests import VALUE, request


@functools.cache
def payload_size() -> int:
    """Return the bytes of one of dialback's requests: control message and body."""
    return len(request()[1])


def json_job(subject: str) -> Message:
    """Return a JSON object, with the headers that FastStream's publisher gives it."""
    headers = {"content-type": "application/json", "correlation_id": str(uuid.uuid4())}
    return subject, _padded({**VALUE}), headers


def taskiq_job(subject: str) -> Message:
    """Return a call of the task ``work``, as taskiq's JSON formatter writes it."""
    argument: dict[str, Any] = {**VALUE}
    call: dict[str, Any] = {
        "task_id": uuid.uuid4().hex,
        "task_name": "work",
        "labels": {},
        "labels_types": {},
        "args": [argument],
        "kwargs": {},
    }
    return subject, _padded(call, argument), None


def _padded(document: dict[str, Any], padded: dict[str, Any] | None = None) -> bytes:
    """Return the document as JSON, made as large as a request by a string in ``padded``."""
    inside = document if padded is None else padded
    inside["padding"] = ""
    inside["padding"] = "x" * max(0, payload_size() - len(orjson.dumps(document)))
    return orjson.dumps(document)
