"""The commands as a user runs them: processes of their own, exit codes, Ctrl-C."""

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint
from support.worker_process import LIMIT, ROOT, worker_process

pytestmark = [pytest.mark.e2e, pytest.mark.integration]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def items(self) -> list[object]:
        """Its JSON lines."""
        return [orjson.loads(line) for line in self.out.splitlines()]


async def _start(*arguments: str, server: str = "") -> asyncio.subprocess.Process:
    environment = dict(os.environ) | ({"NATS_SERVER": server} if server else {})
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dialback", *arguments),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _end(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    async with asyncio.timeout(LIMIT):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def _run(*arguments: str, server: str = "", stdin: bytes = b"") -> Ended:
    return await _end(await _start(*arguments, server=server), stdin)


async def test_the_demo_kills_a_worker_and_everything_arrives() -> None:
    ended = await _run("demo")
    assert ended.code == 0, ended.out + ended.err
    assert "killed with SIGKILL after word 11 of request K" in ended.out
    assert "6 of 6 requests complete, 85 items, each once and in order" in ended.out
    assert "everything arrived" in ended.out


@pytest.mark.parametrize(
    ("engine", "request_text", "expected"),
    [
        ("examples.echo:generate", '{"a": "grüße"}', [{"a": "grüße"}]),
        ("examples.counter:generate", '{"n": 3}', [{"i": 0}, {"i": 1}, {"i": 2}]),
        (
            "examples.fake_llm:FakeLLM",
            '{"prompt": "one two", "tokens": 3, "rate": 1000}',
            [{"token": "one "}, {"token": "two "}, {"token": "one "}],
        ),
    ],
)
async def test_submit_prints_the_items_of_each_example(
    nats_server: EmbeddedServer,
    endpoint: Endpoint,
    engine: str,
    request_text: str,
    expected: list[object],
) -> None:
    async with worker_process(engine, endpoint, nats_server.url) as worker:
        await worker.started()
        by_argument = await _run("submit", str(endpoint), request_text, server=nats_server.url)
        by_stdin = await _run(
            *("submit", str(endpoint), "-", "--codec", "msgpack", "-s", nats_server.url),
            stdin=request_text.encode(),
        )
    assert (by_argument.code, by_argument.items) == (0, expected), by_argument.err
    assert (by_stdin.code, by_stdin.items) == (0, expected), by_stdin.err


async def test_ctrl_c_stops_and_what_was_produced_still_arrives(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with worker_process("examples.flaky:generate", endpoint, nats_server.url) as worker:
        await worker.started()
        process = await _start(
            "submit", str(endpoint), '{"mode": "flood", "after": 1}', server=nats_server.url
        )
        assert process.stdout is not None
        first = await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        ended = await _end(process)
        await worker.until(lambda event: event["message"] == "request finished")
    assert orjson.loads(first) == {"i": 0}
    assert ended.code == 130
    assert "asked to stop" in ended.err
    (finished,) = worker.finished
    assert finished["outcome"] == "stopped"
    assert finished["items"] == 1 + len(ended.items)


async def test_a_second_ctrl_c_ends_an_engine_that_does_not_listen(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    async with worker_process(
        "examples.flaky:generate", endpoint, nats_server.url, stop_grace=600
    ) as worker:
        await worker.started()
        process = await _start(
            "submit", str(endpoint), '{"mode": "hang", "after": 1}', server=nats_server.url
        )
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        ended = await _end(process)
        await worker.until(lambda event: event["message"] == "request finished")
    assert ended.code == 130
    assert [event["outcome"] for event in worker.finished] == ["killed"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("submit", "a.b.c", "{}", "-s", "nats://127.0.0.1:1"), 69, "NATS_SERVER"),
        (("submit", "a.b", "{}"), 2, "NAMESPACE.COMPONENT.ENDPOINT"),
        (("submit", "a.b.c", "{"), 2, "not JSON"),
        (("worker", "run", "no.such:engine", "-e", "a.b.c"), 2, "no module 'no.such'"),
        (("worker", "run", "examples.echo:nothing", "-e", "a.b.c"), 2, "has no 'nothing'"),
        (("worker", "run", "examples.echo:generate", "-e", "A.b.c"), 2, "lower-case"),
    ],
)
async def test_a_mistake_is_one_sentence_and_an_exit_code(
    arguments: tuple[str, ...], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIALBACK_CONNECT_WITHIN", "0.3")
    ended = await _run(*arguments)
    assert ended.code == code
    assert ended.err.startswith("error: ")
    assert says in ended.err
    assert "Traceback" not in ended.err


async def test_submit_to_an_endpoint_without_a_queue_says_how_to_get_one(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    ended = await _run("submit", str(endpoint), "{}", server=nats_server.url)
    assert ended.code == 3
    assert f"dialback worker run ENGINE --endpoint {endpoint}" in ended.err


async def test_a_worker_whose_standard_input_is_closed_ends_cleanly(
    nats_server: EmbeddedServer, endpoint: Endpoint
) -> None:
    command = f"exec {sys.executable} -m dialback worker run examples.echo:generate -e {endpoint}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", command + " <&-"),
        cwd=ROOT,
        env=dict(os.environ) | {"NATS_SERVER": nats_server.url},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    while b"worker started" not in (line := await process.stderr.readline()):
        assert line, "it ended before it started"
    process.terminate()
    ended = await process.stderr.read()
    assert await process.wait() == 0, ended.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_demo_that_is_interrupted_leaves_no_process_behind(
    number: signal.Signals, code: int
) -> None:
    process = await _start("demo")
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(4)]
    assert b"two workers serve" in lines[1]
    before = _children_of(process.pid)
    process.send_signal(number)
    ended = await _end(process)
    assert len(before) == 3, "a server and two workers"
    assert _running(before) == []
    assert ended.code == code
    assert "Traceback" not in ended.err


def _running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _children_of(parent: int) -> list[int]:
    children: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                children.append(int(stat.parent.name))
    return children
