"""The command line in this process: run a command, get its exit code and both outputs."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from typer.testing import CliRunner

from dialback.cli.main import app


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Its output as one JSON document."""
        return orjson.loads(self.stdout)

    @property
    def lines(self) -> list[Any]:
        """Its output as JSON lines."""
        return [orjson.loads(line) for line in self.stdout.splitlines()]


def dialback(
    *arguments: str, stdin: str | bytes | None = None, env: Mapping[str, str] | None = None
) -> Ran:
    """Run ``dialback`` with arguments; the process's logging is left as it was."""
    root, nats = logging.getLogger(), logging.getLogger("nats")
    before = root.handlers[:], root.level, nats.level
    try:
        result = CliRunner().invoke(app, list(arguments), input=stdin, env=env)
    finally:
        root.handlers[:], root.level, nats.level = before
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


async def dialback_beside(*arguments: str, stdin: str | bytes | None = None) -> Ran:
    """The same in a thread, for tests that run in an event loop."""
    return await asyncio.to_thread(dialback, *arguments, stdin=stdin)
