"""The parent's side of a benchmark: a child process, its commands, its CPU time and memory."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil

ROOT: Final = Path(__file__).parent.parent
_LIMIT: Final = 2**26  # bytes of one line
_START: Final = 60.0  # seconds; Dynamo's import alone takes some
_ANSWER: Final = 600.0
_LEAVE: Final = 20.0


class Usage:
    """CPU time and memory of a process and all its children."""

    def __init__(self, pid: int) -> None:
        """Look at a running process."""
        self._root = psutil.Process(pid)

    def cpu(self) -> float:
        """CPU seconds until now, user and system."""
        total = 0.0
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> int:
        """Resident bytes now."""
        total = 0
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


class ChildError(RuntimeError):
    """A child could not do what it was told."""


class Child:
    """A process that serves :func:`benchmarks.lines.serve`. Use as an async context manager."""

    def __init__(
        self,
        python: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a child.

        Args:
            python: Interpreter.
            module: Module to run, with the checkout on the path.
            arguments: Its arguments.
            environment: Variables on top of ours.
        """
        self._command = [python, "-m", module, *arguments]
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None
        self.usage: Usage | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LIMIT,
            start_new_session=True,  # Ctrl-C is for the parent, which stops its children
        )
        self.usage = Usage(self._process.pid)
        try:
            await self._answer(_START)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def ask(self, within: float = _ANSWER, **command: Any) -> dict[str, Any]:
        """Give a command and return its answer.

        Raises:
            ChildError: If it failed, or there is no answer within ``within`` seconds.
        """
        assert self._process is not None  # noqa: S101 -- entered
        assert self._process.stdin is not None  # noqa: S101 -- as above
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._answer(within)

    async def _answer(self, within: float) -> dict[str, Any]:
        assert self._process is not None  # noqa: S101 -- as above
        assert self._process.stdout is not None  # noqa: S101 -- as above
        what = " ".join(self._command[1:])
        try:
            async with asyncio.timeout(within):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise ChildError(f"{what}: no answer within {within:g} s") from error
        if not line:
            raise ChildError(f"{what} ended; its errors are above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildError(f"{what}: {answer['error']}")
        return answer

    async def _stop(self) -> None:
        """Close its stdin and wait; kill it if it stays."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_LEAVE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
