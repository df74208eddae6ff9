"""Running a command: event loop, errors to exit codes, a clean Ctrl-C.

Exit codes are documented in docs/cli.md and tested: they are an interface.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any, Final, TypeVar

import typer

from dialback.cli.output import print_error
from dialback.errors import (
    ConfigError,
    ConfigMismatchError,
    DialbackError,
    DuplicateRequestError,
    NotFoundError,
    PermissionDeniedError,
    QueueFullError,
    ServerUnavailableError,
    StreamMissingError,
)

_T = TypeVar("_T")


class ExitCode(IntEnum):
    """What a command's exit code means (operator 1.4)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    PARTLY_FAILED = 5
    UNAVAILABLE = 69
    TIMED_OUT = 75
    DENIED = 77
    INTERRUPTED = 130
    TERMINATED = 143


_CODES: Final[tuple[tuple[type[BaseException], ExitCode], ...]] = (
    (ConfigError, ExitCode.USAGE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (StreamMissingError, ExitCode.NOT_FOUND),
    (ConfigMismatchError, ExitCode.REFUSED),
    (QueueFullError, ExitCode.REFUSED),
    (DuplicateRequestError, ExitCode.REFUSED),
    (PermissionDeniedError, ExitCode.DENIED),
    (ServerUnavailableError, ExitCode.UNAVAILABLE),
    (TimeoutError, ExitCode.TIMED_OUT),
)


def exit_code_for(error: BaseException) -> ExitCode:
    """Return the exit code of an error that ended a command."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, where it installs."""
    try:
        import uvloop  # noqa: PLC0415 -- not on Windows
    except ImportError:  # pragma: no cover
        return None
    return uvloop.new_event_loop


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine; errors become one sentence on stderr and an exit code.

    Raises:
        typer.Exit: With the error's exit code.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_until_terminated(work))
    except DialbackError as error:
        print_error(str(error))
        raise typer.Exit(exit_code_for(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except _TerminatedError as error:
        raise typer.Exit(ExitCode.TERMINATED) from error


class _TerminatedError(Exception):
    """SIGTERM ended the command; what it had opened is closed."""


async def _until_terminated(work: Coroutine[Any, Any, _T]) -> _T:
    """Let SIGTERM cancel the work, so that its servers and child processes end too.

    A worker puts its own handler in place of this one.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        if task is not None:
            task.cancel()

    if threading.current_thread() is threading.main_thread():  # no other may have handlers
        loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await work
    except asyncio.CancelledError:
        if terminated:
            raise _TerminatedError from None
        raise
