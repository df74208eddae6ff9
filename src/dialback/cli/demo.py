"""``dialback demo``: the main job on one screen, with a worker killed on the way.

A real nats-server, two worker processes, a requester in this process. In the middle of one
answer its worker is killed with SIGKILL; when the lease has ended the other one goes on with the
next word, on the same stream. Every item of every answer is counted.
"""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dialback.cli.logs import set_up_logs
from dialback.cli.options import ServerOption
from dialback.cli.run import ExitCode, run
from dialback.errors import DialbackError, ServerUnavailableError
from dialback.queue.client import QueueClient
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from dialback.requester import Requester
from dialback.settings import Settings, server_is_named

ENDPOINT: Final = Endpoint("demo", "words", "generate")
LEASE: Final = 3.0
_WORKERS: Final = 2
_START_TIMEOUT: Final = 30.0
_STOP_TIMEOUT: Final = 15.0
_TEXTS: Final = (
    "a request waits in the queue until a worker has a free slot",
    "the worker dials back and streams its answer word by word",
    "the message leaves the queue when the outcome is known",
    "two workers share the work and neither knows of the other",
    "start more of them and the queue drains faster",
)
_LONG: Final = (
    "half of this sentence comes from a worker that is killed in the middle of it and the other"
    " half from the one that goes on with the very next word"
)
_KILL_AFTER: Final = 11
"""Words of the long answer that have arrived when its worker is killed."""


@dataclass(slots=True)
class _Answer:
    """One request of the demo, and what came of it."""

    name: str
    text: str
    words: list[str] = field(default_factory=list[str])
    indexes: list[int] = field(default_factory=list[int])
    pids: list[int] = field(default_factory=list[int])
    interruptions: int = 0
    end: str = "waiting"
    half: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, item: dict[str, Any]) -> None:
        """Take one item."""
        self.words.append(item["word"])
        self.indexes.append(item["i"])
        if item["pid"] not in self.pids:
            self.pids.append(item["pid"])
        if len(self.words) == _KILL_AFTER:
            self.half.set()

    @property
    def whole(self) -> bool:
        """Whether every item arrived, once and in order, and the final after them."""
        wanted = self.text.split()
        in_order = self.indexes == list(range(len(wanted)))
        return self.end == "complete" and self.words == wanted and in_order


@dataclass(slots=True)
class _WorkerProcess:
    """One worker process of the demo."""

    process: asyncio.subprocess.Process
    log: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


def demo(server: ServerOption = None) -> None:
    """Show the main job: streamed answers, and a worker killed on the way.

    Starts its own nats-server (extra `embedded`) unless -s/--server, DIALBACK_SERVER or
    NATS_SERVER names one, and two worker processes. Exit code 0 only if every item of every
    answer arrived.

    \b
    Examples:
      dialback demo
      dialback demo -s nats://127.0.0.1:4222
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    set_up_logs("WARNING", "console")
    raise typer.Exit(run(_demo(server)))


async def _demo(server: str | None) -> ExitCode:
    console = Console(highlight=False)
    async with AsyncExitStack() as stack:
        if server is None and not server_is_named():
            console.print("starting a nats-server with JetStream on a free port of 127.0.0.1")
            server = (await stack.enter_async_context(EmbeddedServer())).url
        settings = Settings.load(server=server, ack_wait=LEASE)
        workers = [await stack.enter_async_context(_worker(settings)) for _ in range(_WORKERS)]
        await _both_ready(workers)
        pids = " and ".join(str(worker.pid) for worker in workers)
        console.print(f"two workers serve {ENDPOINT}: processes {pids}")
        answers = [_Answer(f"request {i}", text) for i, text in enumerate(_TEXTS, 1)]
        answers.append(_Answer("request K", _LONG))
        killed = await _ask_all(console, settings, answers, workers)
        left = await _left_in_queue(settings)
        _print_table(console, answers, killed)
        codes = await _stop(workers, killed)
    return _verdict(console, answers, left, codes)


# --- the workers --------------------------------------------------------------------------


@asynccontextmanager
async def _worker(settings: Settings) -> AsyncGenerator[_WorkerProcess]:
    command = [sys.executable, "-m", "dialback", "worker", "run"]
    command += ["dialback.cli.demo_engine:generate", "--endpoint", str(ENDPOINT), "--slots", "4"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stderr=asyncio.subprocess.PIPE,
        env=settings.environment() | {"DIALBACK_LOG_FORMAT": "json"},
    )
    worker = _WorkerProcess(process)
    try:
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if worker.log is not None:
            worker.log.cancel()


async def _both_ready(workers: list[_WorkerProcess]) -> None:
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            await asyncio.gather(*(_ready(worker) for worker in workers))
    except TimeoutError as error:
        raise ServerUnavailableError("a worker did not start in time") from error


async def _ready(worker: _WorkerProcess) -> None:
    """Wait for the worker's first log line, then let its log flow to nowhere."""
    stream = worker.process.stderr
    assert stream is not None  # noqa: S101 -- PIPE
    lines: list[str] = []
    async for line in stream:
        lines.append(line.decode(errors="replace").strip())
        if b"worker started" in line:
            break
    else:
        raise DialbackError("a worker did not start: " + " | ".join(lines[-3:]))
    worker.log = asyncio.create_task(_discard(stream), name=f"log-{worker.pid}")


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


async def _stop(workers: list[_WorkerProcess], killed: int) -> list[int]:
    """Drain the workers that are left; return their exit codes."""
    left = [worker for worker in workers if worker.pid != killed]
    for worker in left:
        worker.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(_STOP_TIMEOUT):
        return [await worker.process.wait() for worker in left]


# --- the requests -------------------------------------------------------------------------


async def _ask_all(
    console: Console,
    settings: Settings,
    answers: list[_Answer],
    workers: list[_WorkerProcess],
) -> int:
    """Ask everything at once, kill a worker in mid-stream; return its pid."""
    screen = _Screen(console, answers)
    async with Requester(settings) as requester:
        with screen:
            async with asyncio.TaskGroup() as group:
                for answer in answers:
                    group.create_task(_ask(requester, answer, screen))
                killing = group.create_task(_kill_worker_of(answers[-1], workers, screen))
    return killing.result()


async def _ask(requester: Requester, answer: _Answer, screen: "_Screen") -> None:
    stream = requester.generate(
        str(ENDPOINT),
        {"text": answer.text},
        request_id=f"{answer.name.replace(' ', '-')}-{time.time_ns()}",
        timeout=30,
        deadline=60,
    )
    try:
        async with stream:
            async for item in stream:
                answer.add(item)
                screen.show(answer, item["word"])
        answer.end = str(stream.end)
    except DialbackError as error:
        answer.end = type(error).__name__
    answer.interruptions = stream.interruptions


async def _kill_worker_of(answer: _Answer, workers: list[_WorkerProcess], screen: "_Screen") -> int:
    """Wait until half of an answer is there, kill its worker, and return that worker's pid."""
    await answer.half.wait()
    victim = next(worker for worker in workers if worker.pid == answer.pids[-1])
    victim.process.kill()
    screen.note(
        f"worker {victim.pid} killed with SIGKILL after word {len(answer.words)} of {answer.name};"
        f" its lease ends within {LEASE:g} s, then the other worker goes on"
    )
    return victim.pid


async def _left_in_queue(settings: Settings) -> int:
    """Return how many messages the queue still holds, once the settling is done."""
    client = await QueueClient.open(settings.server_address(), name="demo", role="operator")
    try:
        left = -1
        for _ in range(50):
            info = await client.api.stream_info(ENDPOINT.stream)
            pending = [
                (await client.api.consumer_info(ENDPOINT.stream, lane))["num_ack_pending"]
                for lane in Lane
            ]
            left = info["state"]["messages"] + sum(pending)
            if left == 0:
                break
            await asyncio.sleep(0.1)
        return left
    finally:
        await client.close()


# --- the screen ---------------------------------------------------------------------------


class _Screen:
    """Answers as they grow: a live table on a terminal, a line for each word on a pipe."""

    def __init__(self, console: Console, answers: list[_Answer]) -> None:
        self._console = console
        self._answers = answers
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "_Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, answer: _Answer, word: str) -> None:
        """Show one more word of an answer."""
        if self._live is None:
            self._console.print(f"{answer.name}  {word}")
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for one in self._answers:
            table.add_row(one.name, " ".join(one.words))
        self._live.update(table, refresh=True)

    def note(self, text: str) -> None:
        """Show a sentence above the answers."""
        self._console.print(text, soft_wrap=True)


def _print_table(console: Console, answers: list[_Answer], killed: int) -> None:
    table = Table(title="outcomes", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("REQUEST", "left"), ("ITEMS", "right"), ("WORKERS LOST", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    table.add_column("ANSWERED BY")
    table.add_column("END")
    for answer in answers:
        by = ", then ".join(f"{pid} (killed)" if pid == killed else str(pid) for pid in answer.pids)
        items = f"{len(answer.words)}/{len(answer.text.split())}"
        table.add_row(answer.name, items, str(answer.interruptions), by, answer.end)
    console.print(table)


def _verdict(console: Console, answers: list[_Answer], left: int, codes: list[int]) -> ExitCode:
    whole = sum(answer.whole for answer in answers)
    words = sum(len(answer.words) for answer in answers)
    console.print(
        f"{whole} of {len(answers)} requests complete, {words} items, each once and in order;"
        f" left in the queue: {left}; the surviving worker drained with exit code {codes[0]}",
        soft_wrap=True,
    )
    good = whole == len(answers) and left == 0 and all(code == 0 for code in codes)
    console.print("everything arrived" if good else "NOT everything arrived", style="bold")
    return ExitCode.DONE if good else ExitCode.FAILED
