import io
import logging
import re
import sys
from collections.abc import Generator
from typing import Any

import orjson
import pytest

from dialback.cli.logs import ConsoleFormatter, JsonFormatter, facts_of, set_up_logs


def _record(message: str = "request finished", **facts: Any) -> logging.LogRecord:
    record = logging.makeLogRecord(
        {"name": "dialback.x", "levelname": "INFO", "msg": message, "created": 1_795_608_000.25}
    )
    vars(record).update(facts)
    return record


@pytest.fixture
def _logging_as_before() -> Generator[None]:
    root, nats = logging.getLogger(), logging.getLogger("nats")
    before = root.handlers[:], root.level, nats.level
    yield
    root.handlers[:], root.level, nats.level = before


def test_json_is_one_object_with_the_facts() -> None:
    line = JsonFormatter().format(_record(outcome="completed", items=3, caller=None))
    assert orjson.loads(line) == {
        "time": "2026-11-25T12:00:00.250Z",
        "level": "INFO",
        "logger": "dialback.x",
        "message": "request finished",
        "outcome": "completed",
        "items": 3,
        "caller": None,
    }


def test_json_never_breaks_on_a_fact() -> None:
    line = JsonFormatter().format(_record(error=ValueError("x"), where={1}))
    event = orjson.loads(line)
    assert (event["error"], event["where"]) == ("x", "{1}")


def test_the_console_is_one_aligned_line_without_empty_facts() -> None:
    line = ConsoleFormatter().format(_record(outcome="completed", caller=None))
    assert line == "12:00:00.250 INFO    request finished             outcome=completed"


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()])
def test_a_traceback_comes_along(formatter: logging.Formatter) -> None:
    record = _record()
    try:
        int("x")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: invalid literal" in formatter.format(record)


def test_only_what_was_given_is_a_fact() -> None:
    assert facts_of(_record(a=1)) == {"a": 1}


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("style", ["json", "auto"])
def test_without_a_terminal_logs_are_json_on_stderr(
    style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logs("WARNING", style)
    logging.getLogger("dialback.test").info("below the level")
    logging.getLogger("dialback.test").warning("said", extra={"n": 1})
    (line,) = stream.getvalue().splitlines()
    assert orjson.loads(line)["n"] == 1


@pytest.mark.usefixtures("_logging_as_before")
def test_on_a_terminal_logs_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logs("INFO", "auto")
    logging.getLogger("dialback.test").info("said", extra={"n": 1})
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} INFO    said +n=1\n", stream.getvalue())


@pytest.mark.usefixtures("_logging_as_before")
def test_the_nats_clients_own_tracebacks_are_not_shown() -> None:
    set_up_logs("DEBUG", "json")
    assert not logging.getLogger("nats").isEnabledFor(logging.ERROR)
