"""``dialback decode``: recorded bytes made readable. Needs no server."""

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dialback.cli.inspection import DEFAULT_MAX_BYTES
from dialback.cli.options import (
    JsonOption,
    MaxBytesOption,
    Output,
    OutputOption,
    choices,
    chosen_output,
    parse_choice,
)
from dialback.cli.output import (
    Column,
    json_text,
    print_json,
    print_record,
    print_rows,
    printable,
)
from dialback.cli.recorded_stream import stream_record
from dialback.cli.recording import is_stream, request_record
from dialback.cli.run import ExitCode, run
from dialback.errors import ConfigError

_HEX_NOISE: Final = re.compile(rb"0x|[\s:]")
_FRAME_COLUMNS: Final = (
    Column("number", "frame"),
    "offset",
    Column("header_bytes", "header"),
    Column("data_bytes", "data"),
    "checksum",
    "meaning",
    "codec",
    Column("value", show=json_text, fold=True),
    Column("problem", fold=True),
)


class Kind(StrEnum):
    """What the bytes are."""

    AUTO = "auto"
    REQUEST = "request"
    STREAM = "stream"


def decode_file(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="File to read; - is stdin.", show_default=False)
    ],
    *,
    as_hex: Annotated[
        bool,
        typer.Option(
            "--hex",
            help="The input is hexadecimal; blanks, line ends, colons and 0x are skipped.",
            show_default=False,
        ),
    ] = False,
    kind: Annotated[
        Kind,
        typer.Option(
            "--as",
            parser=parse_choice(Kind),
            metavar=choices(Kind),
            help="What the bytes are, if it is not to be guessed.",
        ),
    ] = Kind.AUTO,
    max_bytes: MaxBytesOption = DEFAULT_MAX_BYTES,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Make a recorded two-part message readable: a request, or a back-channel's frames.

    A request: sizes, checksum, control message, connection info, body, and whether a worker
    would serve it or why not. A back-channel (one direction): what each frame means, and
    whether it was legal where it came. Bodies are shown: it is your file. Exit codes:
    0 readable and served, 1 a worker would refuse it or a frame is broken, 2 no such file.

    \b
    Examples:
      dialback decode request.bin
      xxd -p request.bin | dialback decode - --hex --json | jq .refusal
      dialback decode worker-to-requester.bin --as stream
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    recording = run(_read(file, as_hex))
    chosen = chosen_output(output, as_json)
    stream = is_stream(recording) if kind is Kind.AUTO else kind is Kind.STREAM
    record = (stream_record if stream else request_record)(recording, max_bytes)
    if chosen is not Output.TABLE:
        print_json(record)
    elif stream:
        _print_stream(record)
    else:
        _print_request(record)
    bad = record["problems"] if stream else record["refusal"]
    raise typer.Exit(ExitCode.FAILED if bad else ExitCode.DONE)


async def _read(file: str, as_hex: bool) -> bytes:
    return read_recording(file, as_hex=as_hex)


def read_recording(file: str, *, as_hex: bool) -> bytes:
    """Return the bytes of a file, or of stdin for ``-``.

    Raises:
        ConfigError: If it cannot be read or is not hexadecimal.
    """
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    if not as_hex:
        return content
    try:
        return bytes.fromhex(_HEX_NOISE.sub(b"", content).decode("ascii"))
    except ValueError as error:
        raise ConfigError(f"{file} is not hexadecimal: {error}") from error


def _print_request(record: dict[str, Any]) -> None:
    frame = {f"frame_{name}": value for name, value in record["frame"].items()}
    shown: dict[str, Any] = {"input": record["input"], "bytes": record["bytes"]} | frame
    for name in ("control", "connection_info", "codec", "body", "served"):
        shown[name] = record[name]
    if record["connection_info"] is not None:  # said once is enough
        control: dict[str, Any] = record["control"]
        shown["control"] = {k: v for k, v in control.items() if k != "connection_info"}
    if record["refusal"]:
        shown |= {f"refusal_{name}": value for name, value in record["refusal"].items()}
    print_record(shown, Output.TABLE, show={"body": json_text})


def _print_stream(record: dict[str, Any]) -> None:
    names = ("input", "bytes", "direction", "items", "end")
    print_record({name: record[name] for name in names}, Output.TABLE)
    typer.echo()
    print_rows(record["frames"], _FRAME_COLUMNS, Output.TABLE)
    for problem in record["problems"]:
        typer.echo(f"\nproblem  {printable(problem)}", nl=False)
    if record["problems"]:
        typer.echo()
