from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from dialback.cli.options import Output, chosen_output
from dialback.cli.output import (
    Column,
    age_of,
    human_age,
    human_left,
    human_size,
    json_text,
    print_error,
    print_json,
    print_note,
    print_record,
    print_rows,
    printable,
)

ROWS: list[dict[str, Any]] = [
    {"name": "a", "count": 1, "age": 61.5, "secret": "x"},
    {"name": "b", "count": None, "age": None, "secret": "y"},
]


def test_json_has_all_fields_whatever_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, ["name"], Output.JSON)
    assert orjson.loads(capsys.readouterr().out) == ROWS


def test_json_lines_are_one_record_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, ["name"], Output.JSONL)
    assert [orjson.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_a_table_has_the_columns_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, ["name", Column("age", "old", human_age, right=True)], Output.TABLE)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["NAME", "OLD"], ["a", "01:01"], ["b", "-"]]


def test_an_empty_table_is_nothing_and_empty_json_is_a_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_rows([], ["name"], Output.TABLE)
    assert capsys.readouterr().out == ""
    print_rows([], ["name"], Output.JSON)
    assert capsys.readouterr().out == "[]\n"


def test_a_field_shown_for_people_is_not_named_after_its_unit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_record(
        {"age_seconds": 61.5, "wait_seconds": 2}, Output.TABLE, show={"age_seconds": human_age}
    )
    assert capsys.readouterr().out == "age           01:01\nwait seconds  2\n"


def test_a_table_on_a_pipe_is_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"reason": "word " * 200}], ["reason"], Output.TABLE)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_on_a_narrow_terminal_only_what_may_be_folded_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    row = {"id": "9f2c71e0-8195-428a-9879-0007614761a0", "reason": "a reason " * 5}
    print_rows([row], ["id", Column("reason", fold=True)], Output.TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert row["id"] in lines[1]
    assert len(lines) == 4


def test_a_table_can_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, ["name"], Output.TABLE, err=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.split() == ["NAME", "a", "b"]


def test_brackets_and_colons_in_a_value_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[/red] [bold] :bomb:"
    print_rows([{"reason": text}], ["reason"], Output.TABLE)
    print_error(text)
    captured = capsys.readouterr()
    assert text in captured.out
    assert captured.err == f"error: {text}\n"


def test_a_value_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "red \x1b[31m\nnext"
    print_rows([{"reason": text}], ["reason"], Output.TABLE)
    print_record({"reason": text}, Output.TABLE)
    print_note(text)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert printable(text) == "red ?[31m?next"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (False, "no"),
        (1234567.0, "1234567"),
        (0.25, "0.25"),
        (12, "12"),
        ({"a": [1]}, '{"a":[1]}'),
        (["x"], '["x"]'),
    ],
)
def test_a_record_shows_each_kind_of_value(
    value: object, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_record({"a_field": value}, Output.TABLE)
    assert capsys.readouterr().out == f"a field  {text}\n"


def test_a_record_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"age": 61.5}, Output.JSONL, show={"age": human_age})
    assert capsys.readouterr().out == '{"age":61.5}\n'
    print_record({"age": 61.5}, Output.TABLE, show={"age": human_age})
    assert capsys.readouterr().out == "age  01:01\n"


def test_what_json_cannot_say_is_shown_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"bytes": b"\xff", 1: {"set"}})
    assert capsys.readouterr().out == """{"bytes":"/w==","1":"{'set'}"}\n"""
    assert json_text({b"key": 1}) == """"{b'key': 1}\""""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-3, "00:00"),
        (18.9, "00:18"),
        (700, "11:40"),
        (3 * 3600 + 120, "3h02m"),
        (6 * 86_400 + 5, "6d"),
    ],
)
def test_ages_are_read_at_a_glance(seconds: float | None, text: str) -> None:
    assert human_age(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (18.9, "00:18"), (0, "passed")])
def test_a_deadline_that_is_over_has_passed(seconds: float | None, text: str) -> None:
    assert human_left(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (912, "912 B"),
        (3174, "3.1 KiB"),
        (2 * 1024**2, "2.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
    ],
)
def test_sizes_are_read_at_a_glance(size: int | None, text: str) -> None:
    assert human_size(size) == text


def test_the_age_of_a_time() -> None:
    now = datetime(2026, 11, 25, 12, 0, 30, tzinfo=UTC)
    assert age_of("2026-11-25T12:00:00.5Z", now) == 29.5
    assert age_of("2026-11-25T12:00:00Z") == pytest.approx(age_of("2026-11-25T12:00:00Z"), abs=60)


def test_json_is_short_for_output_json() -> None:
    assert chosen_output(Output.TABLE, as_json=True) is Output.JSON
    assert chosen_output(Output.JSONL, as_json=False) is Output.JSONL
