import asyncio

import pytest
import typer

from dialback.cli.run import ExitCode, exit_code_for, run
from dialback.errors import (
    ConfigError,
    ConfigMismatchError,
    DeadlineExceededError,
    DialbackError,
    NotFoundError,
    PermissionDeniedError,
    QueueFullError,
    RequestTimeoutError,
    ServerUnavailableError,
    StreamInterrupted,
    StreamMissingError,
)
from dialback.queue.letter_search import AmbiguousIdError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (AmbiguousIdError("x", ["xa", "xb"]), 2),
        (NotFoundError("x"), 3),
        (StreamMissingError("x"), 3),
        (ConfigMismatchError("x", ("y",)), 4),
        (QueueFullError("x"), 4),
        (ServerUnavailableError("x"), 69),
        (RequestTimeoutError("x"), 75),
        (DeadlineExceededError("x"), 75),
        (PermissionDeniedError("x"), 77),
        (StreamInterrupted(3, "x"), 1),
        (DialbackError("x"), 1),
    ],
)
def test_each_error_has_its_exit_code(
    error: DialbackError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        run(fail())
    assert caught.value.exit_code == code == exit_code_for(error)
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_result_is_returned() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert run(work()) == 7


def test_an_interrupt_is_130_and_no_traceback() -> None:
    async def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        run(interrupted())
    assert caught.value.exit_code == ExitCode.INTERRUPTED


def test_our_own_mistake_is_not_hidden() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(broken())
