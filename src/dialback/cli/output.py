"""Printing: tables for people, JSON for programs. Data to stdout, everything else to stderr."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dialback.cli.options import Output

error_console: Final = Console(stderr=True, highlight=False, emoji=False)
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_PIPE_WIDTH: Final = 100_000  # columns: on a pipe nothing is folded
_FOLDED_WIDTH: Final = 20
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Field of the record that it shows.
        title: Its head; the name by default.
        show: Turns the value into text; JSON output is not touched by it.
        right: Whether it is right-aligned; numbers are anyway.
        fold: Whether it may be folded on a narrow terminal; the other columns never are.
    """

    name: str
    title: str = ""
    show: Callable[[Any], str] | None = None
    right: bool = False
    fold: bool = False


def print_error(text: str) -> None:
    """Print one sentence to stderr, as it is."""
    error_console.print("error:", style="bold red", end=" ")
    error_console.print(text, markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print one line to stderr, beside the data."""
    error_console.print(printable(text), markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    typer.echo(json_text(value))


def json_text(value: object) -> str:
    """Return a value as JSON; bytes (msgpack has them) become base64."""
    try:
        return orjson.dumps(value, _readable, orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return orjson.dumps(repr(value)).decode()


def _readable(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str | Column],
    output: Output,
    *,
    err: bool = False,
) -> None:
    """Print records: a table of ``columns``, one JSON list, or one JSON line for each.

    Args:
        rows: The records; JSON has all of their fields.
        columns: What a table shows, field names or columns.
        output: How to print.
        err: Print a table to stderr.
    """
    match output:
        case Output.JSON:
            print_json(list(rows))
        case Output.JSONL:
            for row in rows:
                print_json(row)
        case Output.TABLE if not rows:
            return  # a head without a body says nothing; the command does
        case Output.TABLE:
            chosen = [Column(column) if isinstance(column, str) else column for column in columns]
            _print_table(rows, chosen, err=err)


def _print_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, err: bool
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [[_shown(row.get(column.name), column) for row in rows] for column in columns]
    for column, cells in zip(columns, shown, strict=True):
        title = column.title or column.name.replace("_", " ")
        numeric = any(isinstance(row.get(column.name), int | float) for row in rows)
        table.add_column(
            title.upper(),
            justify="right" if numeric or column.right else "left",
            overflow="fold",
            no_wrap=not column.fold,
            min_width=min(_FOLDED_WIDTH, max(map(len, cells))) if column.fold else None,
        )
    for line in zip(*shown, strict=True):
        # Text, not str: square brackets in a reason are no markup.
        table.add_row(*map(Text, line))
    console = Console(highlight=False, stderr=err)
    # On a pipe a table is as wide as it needs to be: programs read it too. A terminal that is
    # too narrow wraps the lines itself, which is better than ids in pieces.
    needed = Measurement.get(console, console.options.update(width=_PIPE_WIDTH), table)
    width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    Console(highlight=False, stderr=err, width=width).print(table)


def _shown(value: object, column: Column) -> str:
    if value is None or column.show is None:
        return _cell(value)
    return _cell(column.show(value))


def print_record(
    record: Mapping[str, Any],
    output: Output,
    *,
    show: Mapping[str, Callable[[Any], str]] | None = None,
) -> None:
    """Print one record: a line for each field, or one JSON document.

    Args:
        record: The record.
        output: How to print.
        show: Turns the values of some fields into text; JSON output is not touched by it.
    """
    if output is not Output.TABLE:
        print_json(record)
        return
    shows = show or {}
    titles = {name: _title(name, shown=name in shows) for name in record}
    width = max((len(title) for title in titles.values()), default=0)
    for name, value in record.items():
        text = _shown(value, Column(name, show=shows.get(name)))
        typer.echo(f"{titles[name]:<{width}}  {text}")


def _title(name: str, *, shown: bool) -> str:
    """Return a field's name in words; what is shown for people is not in the field's unit."""
    if shown:
        name = name.removesuffix("_seconds").removesuffix("_bytes")
    return name.replace("_", " ")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.3f}".rstrip("0")
    return printable(value if isinstance(value, str) else json_text(value))


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: what came from a message may try to."""
    return "".join(c if c.isprintable() else "?" for c in text)


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


def human_left(seconds: float | None) -> str:
    """Return the time that is left: an age, or ``passed``."""
    if seconds is not None and seconds <= 0:
        return "passed"
    return human_age(seconds)


def human_size(size: int | None) -> str:
    """Return a number of bytes as operators read it: ``912 B``, ``3.1 KiB``, ``2.0 MiB``."""
    if size is None:
        return "-"
    if size < _KIB:
        return f"{size} B"
    number = size / _KIB
    for unit in ("KiB", "MiB"):
        if number < _KIB:
            return f"{number:.1f} {unit}"
        number /= _KIB
    return f"{number:.1f} GiB"


def age_of(time_rfc3339: str, now: datetime | None = None) -> float:
    """Return the seconds since an RFC 3339 time."""
    stored = datetime.fromisoformat(time_rfc3339)
    return ((now or datetime.now(UTC)) - stored).total_seconds()
