import re
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from dialback.cli.decode import read_recording
from dialback.cli.inspection import body_of, cut_value, shown_value
from dialback.cli.recorded_stream import stream_record
from dialback.cli.recording import is_stream, request_record
from dialback.errors import ConfigError
from dialback.transport.items import encode_error_item, encode_final, encode_item
from dialback.transport.messages import DynamoError, PayloadCodec
from dialback.transport.response_stream import KILL_FRAME, SENTINEL_FRAME, STOP_FRAME
from dialback.transport.two_part import encode
from support.captures import CAPTURES, Capture
from support.cli import Ran, dialback
from support.frames import request_payload, tcp_info

DOCS = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
JSON, MSGPACK = PayloadCodec.JSON, PayloadCodec.MSGPACK
HANDSHAKE = encode(b'{"subject":"s-1","stream_type":"response"}')
PROLOGUE = encode(b'{"error":null}')
REFUSAL = encode(b'{"error":"Generate Error: no"}')
REQUEST = request_payload("10.0.0.9:40119", {"n": 3})


def _item(value: object, codec: PayloadCodec = JSON) -> bytes:
    return encode(b"", encode_item(value, codec))


FINAL = encode(b"", encode_final(JSON))
STREAM = HANDSHAKE + PROLOGUE + _item({"i": 0}) + _item({"i": 1}) + FINAL + SENTINEL_FRAME


def _meanings(recording: bytes) -> list[str]:
    return [frame["meaning"] for frame in stream_record(recording, 4096)["frames"]]


# --- requests ---------------------------------------------------------------------------


def test_a_request_is_taken_apart() -> None:
    record = request_record(REQUEST, 4096)
    assert record["input"] == "request"
    assert record["frame"] == {
        "kind": "header-and-data",
        "header_bytes": len(REQUEST) - 24 - 7,
        "data_bytes": 7,
        "checksum": "none",
        "trailing_bytes": 0,
    }
    assert record["control"]["id"] == "req-1"
    assert record["connection_info"]["transport"] == "tcp_server"
    assert record["connection_info"]["info"] == tcp_info("10.0.0.9:40119")
    assert (record["codec"], record["body"]) == ("json", {"n": 3})
    assert (record["served"], record["refusal"]) == (True, None)


@pytest.mark.parametrize(
    ("payload", "outcome", "reason"),
    [
        (REQUEST[:-1], "invalid", "No message decoded"),
        (b"", "invalid", "got 0 bytes"),
        (b"garbage that is no frame at all", "invalid", "message too large"),
        (encode(b"{}", b"1"), "invalid", "control message"),
        (encode(b"[]", b"1"), "invalid", "control message"),
        (encode(b"", b"1"), "invalid", "data-only"),
        (request_payload("10.0.0.9:1", body=b"{"), "invalid", "request body is not json"),
        (request_payload("10.0.0.9:1", 1, payload_codec="cbor"), "unsupported", "control message"),
        (request_payload("nowhere", 1), "unsupported", "is not host:port"),
    ],
)
def test_what_a_worker_would_refuse_is_refused_with_its_reason(
    payload: bytes, outcome: str, reason: str
) -> None:
    record = request_record(payload, 4096)
    assert record["served"] is False
    assert record["refusal"]["outcome"] == outcome
    assert reason in record["refusal"]["reason"]


def test_a_refusal_says_where_it_would_be_answered() -> None:
    record = request_record(REQUEST[:-1], 4096)
    assert record["refusal"]["answered_at"] == "10.0.0.9:40119"
    assert record["control"]["id"] == "req-1"
    assert (record["frame"]["kind"], record["frame"]["checksum"]) == ("broken", "unknown")
    assert request_record(b"", 4096)["refusal"]["answered_at"] is None


def test_bytes_after_a_request_are_counted() -> None:
    assert request_record(REQUEST + b"xyz", 4096)["frame"]["trailing_bytes"] == 3


def test_checksums_are_verified() -> None:
    good = encode(b"{}", b"1", checksum=True)
    assert request_record(good, 4096)["frame"]["checksum"] == "ok"
    wrong = good[:-1] + b"2"
    assert request_record(wrong, 4096)["frame"]["checksum"] == "wrong"


def test_a_msgpack_body_is_shown_as_json() -> None:
    body = msgspec.msgpack.encode({"n": 3, "raw": b"\x00"})
    payload = request_payload("10.0.0.9:1", body=body, payload_codec="msgpack")
    record = request_record(payload, 4096)
    assert (record["codec"], record["body"]) == ("msgpack", {"n": 3, "raw": b"\x00"})


def test_a_body_that_cannot_be_read_is_shown_as_text() -> None:
    assert shown_value(b"{\xff", "json", 100) == {"body": "{\\xff", "body_truncated": False}
    assert shown_value(b"abc", "cbor", 100) == {"body": "abc", "body_truncated": False}


@pytest.mark.parametrize("payload", [encode(b"{}"), b"garbage"])
def test_what_has_no_body_shows_none(payload: bytes) -> None:
    assert body_of(payload, "json", 100) == {"body": None, "body_truncated": False}
    assert request_record(payload, 100)["body"] is None


def test_a_long_body_is_cut() -> None:
    assert shown_value(b'{"text":"0123456789"}', "json", 10) == {
        "body": '{"text":"0…',
        "body_truncated": True,
    }
    assert cut_value("äöü", 3) == "ä…"
    assert cut_value("äöü", 6) == "äöü"


# --- back-channels ----------------------------------------------------------------------


def test_each_frame_of_a_stream_says_what_it_means() -> None:
    record = stream_record(STREAM, 4096)
    assert [frame["meaning"] for frame in record["frames"]] == [
        "handshake",
        "prologue",
        "item",
        "item",
        "final",
        "sentinel",
    ]
    assert record["frames"][0]["value"] == {"subject": "s-1", "stream_type": "response"}
    assert record["frames"][3] == {
        "number": 4,
        "offset": len(HANDSHAKE + PROLOGUE + _item({"i": 0})),
        "kind": "data-only",
        "header_bytes": 0,
        "data_bytes": len(_item({"i": 1})) - 24,
        "checksum": "none",
        "meaning": "item",
        "codec": "json",
        "value": {"i": 1},
        "problem": None,
    }
    assert (record["items"], record["end"], record["problems"]) == (2, "complete", [])


def test_items_in_msgpack_are_recognised() -> None:
    record = stream_record(HANDSHAKE + PROLOGUE + _item({"i": 0}, MSGPACK), 4096)
    item = record["frames"][2]
    assert (item["codec"], item["value"]) == ("msgpack", {"i": 0})


def test_an_error_item_says_kind_and_message() -> None:
    error = DynamoError(error_type={"Backend": "Unknown"}, message="it broke")
    recording = HANDSHAKE + PROLOGUE + encode(b"", encode_error_item(error, MSGPACK))
    frame = stream_record(recording, 4096)["frames"][2]
    assert frame["meaning"] == "error_item"
    assert frame["value"] == {"kind": "Backend Unknown", "message": "it broke"}


def test_an_error_item_without_an_error_says_its_comment() -> None:
    body = b'{"data":{"event":"error","comment":["no","way"]},"complete_final":false}'
    frame = stream_record(HANDSHAKE + PROLOGUE + encode(b"", body), 4096)["frames"][2]
    assert frame["value"] == {"kind": None, "message": "no; way"}


def test_an_item_may_be_nothing() -> None:
    record = stream_record(HANDSHAKE + PROLOGUE + encode(b"", b'{"complete_final":false}'), 4096)
    assert (record["frames"][2]["meaning"], record["items"]) == ("item", 1)


def test_a_refused_stream_is_refused() -> None:
    record = stream_record(HANDSHAKE + REFUSAL + SENTINEL_FRAME, 4096)
    assert [f["meaning"] for f in record["frames"]] == ["handshake", "error_prologue", "sentinel"]
    assert (record["end"], record["problems"]) == ("refused", [])


def test_a_stream_without_its_final_is_broken_but_readable() -> None:
    record = stream_record(HANDSHAKE + PROLOGUE + _item(1), 4096)
    assert (record["end"], record["problems"]) == ("broken", [])


def test_a_stream_that_is_cut_inside_a_frame_keeps_what_came_before() -> None:
    record = stream_record(STREAM[:-3], 4096)
    assert len(record["frames"]) == 5
    (problem,) = record["problems"]
    assert problem.startswith("the recording ends inside a frame: 31 bytes at offset")


@pytest.mark.parametrize(
    ("recording", "number", "problem"),
    [
        (PROLOGUE + _item(1), 1, "not a handshake"),
        (HANDSHAKE + _item(1), 2, "malformed prologue"),
        (HANDSHAKE + PROLOGUE + encode(b"", b"neither"), 3, "neither JSON nor msgpack"),
        (HANDSHAKE + PROLOGUE + FINAL + _item(1), 4, "item received while final seen"),
        (HANDSHAKE + PROLOGUE + STOP_FRAME, 3, ""),
        (HANDSHAKE + PROLOGUE + encode(b"{}", b"{}"), 3, "header-and-data"),
    ],
)
def test_a_frame_in_the_wrong_place_is_a_problem(
    recording: bytes, number: int, problem: str
) -> None:
    problems = stream_record(recording, 4096)["problems"]
    assert problems[0].startswith(f"frame {number}: ")
    assert problem in problems[0]


def test_a_frame_in_the_wrong_place_still_says_what_it_is() -> None:
    assert _meanings(HANDSHAKE + PROLOGUE + FINAL + _item(1))[-1] == "item"
    assert _meanings(HANDSHAKE + PROLOGUE + FINAL + FINAL)[-1] == "final"
    assert _meanings(HANDSHAKE + PROLOGUE + STOP_FRAME)[-1] == "stop"
    assert _meanings(HANDSHAKE + PROLOGUE + encode(b"{}", b"{}"))[-1] == "unknown"
    assert _meanings(HANDSHAKE + PROLOGUE + encode())[-1] == "empty"


def test_a_wrong_checksum_in_a_stream_is_a_problem() -> None:
    frame = encode(b'{"subject":"s-1","stream_type":"response"}', checksum=True)
    assert stream_record(frame, 4096)["problems"] == []
    wrong = frame.replace(b"s-1", b"s-2")
    assert stream_record(wrong, 4096)["problems"] == ["frame 1: wrong checksum"]


def test_what_a_resumable_requester_says_is_its_direction_too() -> None:
    record = stream_record(
        encode(b'{"resume":2,"fruitless":0}') + encode(b'{"superseded":3}') + STOP_FRAME, 4096
    )
    assert record["direction"] == "requester to worker"
    assert record["problems"] == []
    assert [(frame["meaning"], frame["value"]) for frame in record["frames"]] == [
        ("answer", {"resume": 2, "fruitless": 0}),
        ("superseded", {"superseded": 3}),
        ("stop", None),
    ]


def test_the_requesters_direction_has_orders() -> None:
    record = stream_record(STOP_FRAME + encode() + KILL_FRAME + _item(1), 4096)
    assert record["direction"] == "requester to worker"
    assert [f["meaning"] for f in record["frames"]] == ["stop", "empty", "kill", "unknown"]
    assert record["end"] is None
    assert record["problems"] == ["frame 4: neither stop nor kill: a worker takes it as a kill"]


@pytest.mark.parametrize(
    ("recording", "stream"),
    [
        (STREAM, True),
        (STOP_FRAME, True),
        (PROLOGUE, True),
        (_item(1), True),
        (REQUEST, False),
        (REQUEST[:-1], False),
        (b"", False),
        (b"garbage" * 9, False),
        (encode(b"[]"), False),
        (encode(b"{"), False),
        (encode(b"", b"no item"), False),
    ],
)
def test_what_a_recording_is_can_be_seen(recording: bytes, stream: bool) -> None:
    assert is_stream(recording) is stream


@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_what_real_dynamo_peers_wrote_is_readable(capture: Capture) -> None:
    assert request_record(capture.payload, 4096)["served"]
    assert is_stream(capture.worker_bytes)
    record = stream_record(capture.worker_bytes, 4096)
    assert record["problems"] == []
    assert len(record["frames"]) == len(capture.frames)
    if capture.requester_bytes:
        assert is_stream(capture.requester_bytes)
        assert stream_record(capture.requester_bytes, 4096)["problems"] == []


# --- the command ------------------------------------------------------------------------


def test_the_documented_fields_are_the_fields() -> None:
    text = DOCS.split("### `dialback decode`")[1]
    request, stream = text.split("Fields of a stream:")
    documented = [
        set(re.findall(r"^\| `([a-z_]+)` \|", t, re.MULTILINE)) for t in (request, stream)
    ]
    records = [request_record(REQUEST, 4096), stream_record(STREAM, 4096)]
    assert documented == [set(record) for record in records]
    frame = next(line for line in stream.splitlines() if line.startswith("| `frames` |"))
    assert set(re.findall("`([a-z_]+)`", frame)) - {"frames"} == set(records[1]["frames"][0])


def _decode(recording: bytes, *flags: str) -> Ran:
    return dialback("decode", "-", *flags, stdin=recording)


def test_a_request_that_is_served_exits_0(tmp_path: Path) -> None:
    file = tmp_path / "request.bin"
    file.write_bytes(REQUEST)
    ran = dialback("decode", str(file))
    assert ran.exit_code == 0
    assert 'body                  {"n":3}\n' in ran.stdout
    assert "served                yes\n" in ran.stdout
    assert ran.stdout.count("10.0.0.9:40119") == 1


def test_a_request_that_is_refused_exits_1() -> None:
    ran = _decode(REQUEST[:-1])
    assert ran.exit_code == 1
    assert "refusal outcome" in ran.stdout


def test_garbage_exits_1_and_is_no_crash() -> None:
    ran = _decode(b"\xff" * 100)
    assert ran.exit_code == 1
    assert ran.stderr == ""


@pytest.mark.parametrize("flags", [("--json",), ("-o", "json"), ("-o", "jsonl")])
def test_json_is_the_whole_record(flags: tuple[str, ...]) -> None:
    ran = _decode(REQUEST, *flags)
    assert ran.json == request_record(REQUEST, 4096)


def test_a_stream_is_a_table_of_frames() -> None:
    ran = _decode(STREAM)
    assert ran.exit_code == 0
    assert "end        complete\n" in ran.stdout
    assert [line.split()[5] for line in ran.stdout.splitlines() if line.startswith("    ")] == [
        "handshake",
        "prologue",
        "item",
        "item",
        "final",
        "sentinel",
    ]


def test_a_broken_stream_exits_1_and_lists_the_problems() -> None:
    ran = _decode(STREAM[:-3])
    assert ran.exit_code == 1
    assert "problem  the recording ends inside a frame" in ran.stdout


def test_the_guess_can_be_overruled() -> None:
    assert _decode(STREAM, "--as", "request", "--json").json["input"] == "request"
    assert _decode(REQUEST, "--as", "stream", "--json").json["input"] == "stream"


@pytest.mark.parametrize(
    "text", [REQUEST.hex(), REQUEST.hex(" ").upper(), REQUEST.hex(":"), "0x" + REQUEST.hex() + "\n"]
)
def test_hexadecimal_in_the_usual_forms(text: str) -> None:
    assert _decode(text.encode(), "--hex", "--json").json["body"] == {"n": 3}


def test_what_is_not_hexadecimal_is_wrong_usage() -> None:
    ran = _decode(b"zz", "--hex")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "- is not hexadecimal" in ran.stderr


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="/nowhere/x: No such file or directory"):
        read_recording("/nowhere/x", as_hex=False)
    assert dialback("decode", "/nowhere/x").exit_code == 2


def test_a_long_body_is_cut_in_the_output() -> None:
    payload = request_payload("10.0.0.9:1", "x" * 100)
    record: dict[str, Any] = _decode(payload, "--json", "--max-bytes", "9").json
    assert (record["body"], record["body_truncated"]) == ("x" * 9 + "…", True)
    assert orjson.loads(_decode(payload, "--json").stdout)["body"] == "x" * 100
