import errno
import sys
from typing import NoReturn

import pytest

import dialback as package
from dialback.cli.main import main
from support.cli import dialback

COMMANDS: list[tuple[str, ...]] = [
    (),
    ("worker",),
    ("worker", "run"),
    ("submit",),
    ("demo",),
    ("queue",),
    ("queue", "ls"),
    ("queue", "info"),
    ("queue", "peek"),
    ("dlq",),
    ("dlq", "ls"),
    ("dlq", "show"),
    ("dlq", "requeue"),
    ("decode",),
]
LEAVES = [command for command in COMMANDS if command not in {(), ("worker",), ("queue",), ("dlq",)}]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(command: tuple[str, ...], flag: str) -> None:
    ran = dialback(*command, flag)
    assert ran.exit_code == 0
    assert f"Usage: dialback {' '.join(command)}".rstrip() in ran.stdout


@pytest.mark.parametrize("command", [c for c in LEAVES if c != ("demo",)], ids=" ".join)
def test_every_command_shows_examples_line_by_line(command: tuple[str, ...]) -> None:
    lines = dialback(*command, "--help").stdout.splitlines()
    examples = lines[lines.index("  Examples:") + 1 :]
    assert any(f"dialback {' '.join(command)} " in f"{line} " for line in examples)


@pytest.mark.parametrize("noun", ["queue", "dlq", "worker"])
def test_a_noun_alone_shows_its_verbs(noun: str) -> None:
    ran = dialback(noun)
    assert "Usage:" in ran.stdout + ran.stderr


def test_version() -> None:
    ran = dialback("--version")
    assert (ran.exit_code, ran.stdout) == (0, f"dialback {package.__version__}\n")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert dialback("queeue").exit_code == 2


@pytest.mark.parametrize("command", [c for c in LEAVES if c[0] in {"queue", "dlq"}], ids=" ".join)
def test_looking_commands_share_their_flags(command: tuple[str, ...]) -> None:
    text = dialback(*command, "--help").stdout
    for flag in ("-s, --server URL", "-o, --output", "--json", "--timeout"):
        assert flag in text


def test_an_error_outside_a_command_is_a_sentence_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIALBACK_SLOTTS", "4")
    monkeypatch.setattr(sys, "argv", ["dialback", "submit", "demo.backend.generate", "1"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "unknown environment variable DIALBACK_SLOTTS" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(errno.ECONNRESET, "reset"), OSError(errno.ENOSPC, "full", "/tmp/x")],  # noqa: S108
    ids=["no output", "another file"],
)
def test_errors_that_are_not_the_outputs_are_not_hidden(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr("dialback.cli.main.app", fail)
    with pytest.raises(type(error)) as caught:
        main()
    assert caught.value is error
