"""The ``dialback`` command: puts the nouns together."""

import errno
import os
import sys
from typing import Annotated, Final

import typer

from dialback import __version__
from dialback.cli import decode, demo, dlq, janitor, queue, submit, worker
from dialback.cli.output import print_error
from dialback.cli.run import ExitCode, exit_code_for
from dialback.errors import DialbackError

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

app = typer.Typer(
    name="dialback",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A JetStream work queue whose workers stream answers back over TCP.",
)
app.add_typer(worker.app, name="worker")
app.add_typer(queue.app, name="queue")
app.add_typer(dlq.app, name="dlq")
app.command("janitor")(janitor.janitor)
app.command("submit")(submit.submit)
app.command("decode")(decode.decode_file)
app.command("demo")(demo.demo)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"dialback {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """A JetStream work queue whose workers stream answers back over TCP.

    Start with `dialback demo`, then `dialback worker run --help`.
    """


def _open_standard_streams() -> None:
    """Open what the parent closed (``<&-``): or the next file would become stdin, or stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def _output_failed(error: OSError) -> bool:
    """Whether output was sent to a file that takes no more; no command writes other files."""
    return error.errno in _NO_ROOM and error.filename is None and not sys.stdout.isatty()


def _discard_output() -> None:
    """Let what is still buffered go nowhere: at its exit Python would complain about it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def main() -> None:
    """Run the command line; errors become one sentence and an exit code."""
    _open_standard_streams()
    try:
        app()
    except DialbackError as error:
        print_error(str(error))
        raise SystemExit(int(exit_code_for(error))) from error
    except OSError as error:
        if not _output_failed(error):
            raise
        _discard_output()
        print_error(f"standard output: {error.strerror}")
        raise SystemExit(int(ExitCode.FAILED)) from error
