"""Logs: JSON lines for machines, aligned text on a terminal. One event on one line, UTC."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from typing_extensions import override

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logs(level: str, style: str) -> None:
    """Send all logs to stderr.

    Args:
        level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
        style: ``console``, ``json``, or ``auto``: console on a terminal, else JSON.
    """
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else ConsoleFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Not shown, and half of what a line costs; the last one is who called, as logging's own
    # documentation of its optimisations has it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    # nats-py logs each failed reconnect with a traceback; we log the event ourselves.
    logging.getLogger("nats").setLevel(logging.CRITICAL)


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was given in ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _time_of(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"  # in place of +00:00


class JsonFormatter(logging.Formatter):
    """One JSON object for each event: time, level, logger, message, then the facts."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **facts_of(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(event, default=str).decode()


class ConsoleFormatter(logging.Formatter):
    """``12:00:01.250 INFO  request finished  outcome=completed items=3``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        clock = _time_of(record)[11:23]
        facts = " ".join(
            f"{name}={value}" for name, value in facts_of(record).items() if value is not None
        )
        line = f"{clock} {record.levelname:<7} {record.getMessage():<28} {facts}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
