"""Printing: tables for people, JSON for programs. Data to stdout, everything else to stderr."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table

from dialback.cli.options import Output

error_console: Final = Console(stderr=True, highlight=False)
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def print_error(text: str) -> None:
    """Print one sentence to stderr, as it is."""
    error_console.print("error:", style="bold red", end=" ")
    error_console.print(text, markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    typer.echo(orjson.dumps(value).decode())


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], output: Output) -> None:
    """Print records: a table of ``columns``, one JSON list, or one JSON line for each."""
    match output:
        case Output.JSON:
            print_json(list(rows))
        case Output.JSONL:
            for row in rows:
                print_json(row)
        case Output.TABLE:
            _print_table(rows, columns)


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        values = [row.get(column) for row in rows]
        numeric = any(isinstance(v, int | float) for v in values)
        table.add_column(
            column.replace("_", " ").upper(),
            justify="right" if numeric else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    # On a pipe a table is as wide as it needs to be: programs read it too.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=250)
    console.print(table)


def print_record(record: Mapping[str, Any], output: Output) -> None:
    """Print one record: a line for each field, or one JSON document."""
    if output is not Output.TABLE:
        print_json(record)
        return
    width = max(len(name) for name in record)
    for name, value in record.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_cell(value)}")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict | list):
        return orjson.dumps(value).decode()
    return str(value)


def human_age(seconds: float | None) -> str:
    """Return an age as operators read it: ``00:18``, ``11:40``, ``3h02m``, ``6d``."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < _HOUR:
        return f"{whole // _MINUTE:02d}:{whole % _MINUTE:02d}"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
    return f"{whole // _DAY}d"


def age_of(time_rfc3339: str, now: datetime | None = None) -> float:
    """Return the seconds since an RFC 3339 time."""
    stored = datetime.fromisoformat(time_rfc3339)
    return ((now or datetime.now(UTC)) - stored).total_seconds()
