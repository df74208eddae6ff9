"""The metrics contract: our worker beside a captured Dynamo 1.6.1 worker, step by step.

A real worker on a real nats-server is driven through the steps of the capture
(tests/vectors/metrics); names, types, HELP, labels, buckets and the movement of every series
are compared. What differs on purpose is a row of DIFFERENCES, and of docs/metrics.md.
"""

import asyncio
import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from dialback.metrics.names import ErrorType
from support.eventually import eventually
from support.frames import VECTORS
from support.metrics_lab import STEPS, Lab, lab, read
from support.worker_process import parse_metrics

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
CAPTURED = VECTORS / "metrics"

REQUESTS = "dynamo_component_requests_total"
ENDED = "dynamo_component_request_duration_seconds_count"
REQUEST_BYTES = "dynamo_component_request_bytes_total"
RESPONSE_BYTES = "dynamo_component_response_bytes_total"
CANCELLATIONS = "dynamo_component_cancellation_total"
TRANSIT = "dynamo_work_handler_network_transit_seconds_count"
PROLOGUES = "dynamo_work_handler_time_to_first_response_seconds_count"


def errors(error_type: ErrorType) -> str:
    """Name of an error series."""
    return f'dynamo_component_errors_total{{error_type="{error_type}"}}'


@dataclass(frozen=True, slots=True)
class Difference:
    """One deliberate difference from Dynamo 1.6.1.

    Attributes:
        step: Step of the capture.
        series: What moves differently; its labels, if only some values do.
        dynamo: How far Dynamo's moves; ``None`` if the series does not exist.
        ours: How far ours moves.
        reason: Why.
    """

    step: str
    series: str
    dynamo: int | None
    ours: int
    reason: str


# Reasons of one row each; docs/metrics.md shows the same table, and a test compares.
DIFFERENCES = (
    Difference(
        "start",
        "dynamo_component_errors_total",
        None,
        0,
        "every `error_type` exists at 0 from the start, so that a rate sees the first error",
    ),
    Difference(
        "one-from-real-client",
        TRANSIT,
        0,
        1,
        "the send time is read from the header `x-frontend-send-ts-ns` too, which is where"
        " Dynamo's clients put it",
    ),
    Difference(
        "codec-short-payload",
        errors(ErrorType.INVALID_MESSAGE),
        0,
        1,
        "a frame that is cut off is an error like any other invalid message",
    ),
    Difference(
        "cancel-stop-worker-ignores",
        errors(ErrorType.PUBLISH_RESPONSE),
        1,
        0,
        "a stop flushes: items of an engine that has not noticed yet are still written, so"
        " nothing failed",
    ),
    Difference(
        "cancel-stop-worker-ignores",
        RESPONSE_BYTES,
        256,
        279,
        "and the stream ends with its final (23 bytes)",
    ),
    Difference(
        "cancel-kill",
        RESPONSE_BYTES,
        215,
        192,
        "after a kill no final is tried, so its 23 bytes are not counted",
    ),
    Difference(
        "publish-response-peer-reset",
        CANCELLATIONS,
        0,
        1,
        "a caller that hangs up has cancelled; Dynamo counts it or not, depending on what it"
        " notices first",
    ),
    Difference(
        "transport-unknown",
        errors(ErrorType.RESPONSE_STREAM),
        0,
        1,
        "a call-home transport that is not known is an error of the response stream",
    ),
    Difference(
        "full-close",
        CANCELLATIONS,
        0,
        1,
        "as `publish-response-peer-reset`; counted when a write fails, once",
    ),
)

# Not in the capture: what Dynamo 1.6.1 was seen to do (protocol 12.2 and 12.3). The number of
# bytes depends there on when a close is noticed.
SERVED: dict[str, float] = {REQUESTS: 1, ENDED: 1, PROLOGUES: 1}
OBSERVED: dict[str, dict[str, float]] = {
    "transport-unknown": {REQUESTS: 1, ENDED: 1},
    "full-close": {**SERVED, errors(ErrorType.PUBLISH_RESPONSE): 1},
    "half-close": SERVED,
}


def _dynamo() -> dict[str, dict[str, float]]:
    """How far Dynamo's series move in each step; absent means not at all."""
    captured = orjson.loads((CAPTURED / "1.6.1-deltas.json").read_bytes())
    moved = {
        step: {_key(series): after - (before or 0) for series, (before, after) in deltas.items()}
        for step, deltas in captured.items()
    }
    return moved | OBSERVED


def _key(series: str) -> str:
    """A series without the labels that say which worker."""
    return next(iter(parse_metrics(f"{series} 0")))


DYNAMO = _dynamo()


@dataclass(frozen=True, slots=True)
class Record:
    """What the worker exposed after a step, and what it was sent in it."""

    text: str
    moved: dict[str, float]
    sent_bytes: int


async def _record() -> dict[str, Record]:
    records: dict[str, Record] = {}
    before: dict[str, float] = {}
    async with lab() as worker:
        for name, step in STEPS.items():
            sent_before = worker.sent_bytes
            await step(worker)
            text = await worker.exposition()
            after = _counted(text)
            moved = {series: value - before.get(series, 0) for series, value in after.items()}
            records[name] = Record(text, moved, worker.sent_bytes - sent_before)
            before = after
    return records


def _counted(text: str) -> dict[str, float]:
    """Dynamo's series without those that measure time."""
    return {
        series: value
        for series, value in parse_metrics(text).items()
        if series.startswith("dynamo_")
        and not re.search(r"_bucket\b|_sum$|_uptime_seconds", series)
    }


@pytest.fixture(scope="module")
def records() -> Generator[dict[str, Record]]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            name for name in os.environ if name.startswith(("DIALBACK_", "NATS_", "DYN_"))
        ]:
            patch.delenv(name)
        yield asyncio.run(_record())


# --- how much each series moves -----------------------------------------------------------


def test_the_steps_are_those_of_the_capture_and_ours_after_them() -> None:
    assert list(STEPS) == list(DYNAMO)


@pytest.mark.parametrize("step", [step for step in STEPS if step != "start"])
def test_every_series_moves_as_dynamos_does_but_for_the_differences(
    step: str, records: dict[str, Record]
) -> None:
    expected = DYNAMO[step] | {d.series: d.ours for d in DIFFERENCES if d.step == step}
    expected[REQUEST_BYTES] = records[step].sent_bytes  # ids and addresses differ in length
    moved = records[step].moved
    if step in OBSERVED:
        moved = moved | {RESPONSE_BYTES: 0}
    assert _nonzero(moved) == _nonzero(expected)


def _nonzero(moved: dict[str, float]) -> dict[str, float]:
    return {series: value for series, value in moved.items() if value}


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: f"{d.step}-{d.series}")
def test_a_difference_is_one_and_says_what_dynamo_does(difference: Difference) -> None:
    assert difference.dynamo != difference.ours
    assert difference.reason
    captured = DYNAMO[difference.step].get(difference.series)
    if difference.dynamo is None:
        assert captured is None
    else:
        assert difference.dynamo == (captured or 0)


def test_the_bytes_of_a_real_clients_request_are_dynamos(records: dict[str, Record]) -> None:
    """The captured payload has a port of five digits; ours may have fewer."""
    sent = records["one-from-real-client"].sent_bytes
    assert DYNAMO["one-from-real-client"][REQUEST_BYTES] - sent in range(5)


# --- what the text says -------------------------------------------------------------------


def _lines(text: str, *, without: str = "dialback_") -> list[str]:
    """HELP and TYPE lines and the series' names and labels, in order, without values."""
    normal = re.sub(r'worker_id="[0-9a-f]+"', 'worker_id="w"', text)
    lines: list[str] = []
    for line in normal.splitlines():
        shown = line if line.startswith("#") else line.rpartition(" ")[0]
        if not re.match(rf"(# (HELP|TYPE) )?{without}", shown):
            lines.append(shown)
    return lines


def test_names_types_help_labels_and_buckets_are_dynamos(records: dict[str, Record]) -> None:
    captured = (CAPTURED / "1.6.1-after-errors.txt").read_text()
    ours = _lines(records["publish-response-peer-reset"].text)
    theirs = _lines(captured)
    extra = [line for line in ours if line not in theirs]
    assert [line for line in ours if line in theirs] == theirs
    (serialization,) = extra  # the one kind of error that the capture has not
    assert serialization == (
        'dynamo_component_errors_total{dynamo_component="backend",dynamo_endpoint="generate",'
        'dynamo_namespace="lab",error_type="serialization",worker_id="w"}'
    )


def test_at_the_start_only_the_error_series_are_more_than_dynamos(
    records: dict[str, Record],
) -> None:
    (more,) = [d.series for d in DIFFERENCES if d.step == "start"]
    start = records["start"]
    theirs = _lines((CAPTURED / "1.6.1-start.txt").read_text())
    ours = _lines(start.text)
    extra = [line for line in ours if line not in theirs]
    assert [line for line in ours if line in theirs] == theirs
    assert len(extra) == 2 + len(ErrorType)
    assert all(more in line for line in extra)
    assert set(start.moved) == set(DYNAMO["start"]) | set(map(errors, ErrorType))
    assert set(start.moved.values()) == {0}


def test_label_texts_are_rusts_and_there_are_no_creation_times(records: dict[str, Record]) -> None:
    text = records["start"].text
    assert 'le="1"}' in text
    assert 'le="1.0"' not in text
    assert "_created" not in text


def test_only_our_own_prefix_is_more(records: dict[str, Record]) -> None:
    names = re.findall(r"^# TYPE (\w+) ", records["start"].text, re.MULTILINE)
    assert all(name.startswith(("dynamo_", "dialback_")) for name in names)


# --- the probes ---------------------------------------------------------------------------


def _shape(body: str) -> Any:
    """A probe's keys in order, with the types of the uptime's values; the words are checked."""
    document: dict[str, Any] = orjson.loads(body)
    assert set(document["endpoints"].values()) | {document["status"]} <= {"ready", "notready"}
    uptime: dict[str, Any] = document["uptime"]
    return list(document), [(key, type(value)) for key, value in uptime.items()]


CAPTURED_PROBES: dict[str, dict[str, Any]] = orjson.loads(
    (CAPTURED / "1.6.1-health.json").read_bytes()
)


@pytest.mark.parametrize("path", ["/health", "/live"])
async def test_probes_have_dynamos_paths_and_shape_and_tell_the_truth(path: str) -> None:
    waiting, ready = (
        CAPTURED_PROBES[path],
        CAPTURED_PROBES[f"{path} after rt.set_health_status(True)"],
    )
    async with lab() as worker:
        await _endpoint_becomes(worker, path, "ready")
        status, body = await worker.get(path)
        assert (status, _shape(body)) == (ready["status"], _shape(ready["body"]))
        assert orjson.loads(body)["endpoints"] == orjson.loads(ready["body"])["endpoints"]

        worker.engine.is_ready = False
        await _endpoint_becomes(worker, path, "notready")
        status, body = await worker.get(path)
        assert _shape(body) == _shape(waiting["body"])
        assert status == (503 if path == "/health" else 200), "not ready is no reason to restart"


async def test_while_draining_health_fails_and_live_does_not() -> None:
    async with lab() as worker:
        connection = await worker.ask("slow", n=6, after=3)
        await read(connection, items=3)
        await _endpoint_becomes(worker, "/health", "ready")
        worker.worker.stop()
        await _endpoint_becomes(worker, "/health", "notready")
        assert (await worker.get("/health"))[0] == 503
        assert (await worker.get("/live"))[0] == 200
        worker.engine.go_on.set()
        await read(connection)


async def test_other_paths_are_refused_in_dynamos_words() -> None:
    async with lab() as worker:
        captured = CAPTURED_PROBES["/v1/metadata (end)"]
        for path in ("/v1/metadata", "/metadata"):
            assert await worker.get(path) == (captured["status"], captured["body"])


async def _endpoint_becomes(worker: Lab, path: str, word: str) -> None:
    def says(answer: tuple[int, str]) -> bool:
        return bool(orjson.loads(answer[1])["endpoints"] == {"generate": word})

    await eventually(lambda: worker.get(path), says)


# --- the document -------------------------------------------------------------------------


def test_the_documented_differences_are_the_ones_tested() -> None:
    section = PAGE.read_text().split("## Differences from Dynamo 1.6.1")[1].split("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|")))
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert rows == [
        (f"`{d.step}`", f"`{d.series}`", _shown(d.dynamo), str(d.ours), d.reason)
        for d in DIFFERENCES
    ]


def _shown(value: int | None) -> str:
    return "no series" if value is None else str(value)


def test_every_series_is_documented_with_type_and_help(records: dict[str, Record]) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| (\w+) \|.*\| ([^|]+) \|$", PAGE.read_text(), re.M))
    text = records["half-close"].text
    helps = dict(re.findall(r"^# HELP (\w+) (.+)$", text, re.MULTILINE))
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    assert {name: (types[name], helps[name]) for name in types} == {
        name: (kind, documentation) for name, kind, documentation in rows if name in types
    }
    assert {name for name, _, _ in rows} == set(types)
