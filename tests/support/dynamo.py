"""Real Dynamo peers for tests: their processes, discovery records, and a queue that feeds them."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from zlib import crc32

import orjson

from dialback.queue.client import QueueClient
from dialback.queue.topology import Endpoint, Lane
from support.eventually import eventually

TESTS = Path(__file__).parent.parent
DISCOVERED: Final = Endpoint("interop", "discovered", "generate")
LIMIT = 60.0  # seconds for anything a test waits for
REFRESH = 2.0  # seconds between two signs of life of a record; Dynamo drops it after 10
_LINE = 2**26  # bytes of one line


@dataclass(frozen=True, slots=True)
class Caller:
    """What the caller saw of one stream: its items, then its one end.

    Attributes:
        items: Items in the order they came.
        error: The exception's text, or ``None`` for a clean end.
    """

    items: list[Any]
    error: str | None


class Peer:
    """A process run by a Dynamo release's Python, driven by JSON lines."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.noise: list[str] = []
        self._events: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._changed = asyncio.Condition()
        self._last = 0
        self._readers = [asyncio.create_task(self._read()), asyncio.create_task(self._listen())]

    @classmethod
    async def start(cls, python: Path, script: str, environment: dict[str, str]) -> Self:
        """Start a peer and wait until it takes commands."""
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("DYN_", "NATS_"))}
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-m", f"interop.peers.{script}"),
            env=inherited | environment | {"PYTHONPATH": str(TESTS)},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=_LINE,
        )
        peer = cls(process)
        await peer.event(0, "ready")
        return peer

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                event = orjson.loads(line)
            except ValueError:
                self.noise.append(line.decode(errors="replace"))
                continue
            async with self._changed:
                self._events[event["number"]].append(event)
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    async def _listen(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.noise.append(line.decode(errors="replace"))

    async def command(self, **command: Any) -> int:
        """Give a command; return its number, under which its events are found."""
        assert self.process.stdin is not None
        self._last += 1
        self.process.stdin.write(orjson.dumps(command | {"number": self._last}) + b"\n")
        await self.process.stdin.drain()
        return self._last

    def seen(self, number: int, *names: str) -> list[dict[str, Any]]:
        """Events of a command so far."""
        return [event for event in self._events[number] if event["event"] in names]

    async def event(self, number: int, *names: str, count: int = 1) -> dict[str, Any]:
        """Wait for an event of these names; fail when the process has ended instead."""

        def there() -> bool:
            return len(self.seen(number, *names)) >= count or self._readers[0].done()

        try:
            async with asyncio.timeout(LIMIT), self._changed:
                await self._changed.wait_for(there)
        except TimeoutError:
            await self._show_stacks()
            raise AssertionError(f"no event {names} of {number}: {self._story(number)}") from None
        found = self.seen(number, *names)
        assert len(found) >= count, f"it ended before {names} of {number}: {self._story(number)}"
        return found[count - 1]

    async def _show_stacks(self) -> None:
        """Let the peer write its threads' stacks to stderr."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(1)

    def _story(self, number: int) -> str:
        return f"{self._events[number]} {''.join(self.noise[-40:])}"

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._readers)
        assert self.process.stdin is not None
        self.process.stdin.close()
        with suppress(BrokenPipeError, ConnectionResetError):
            await self.process.stdin.wait_closed()


@dataclass(frozen=True, slots=True)
class Dynamo:
    """One release with one codec, on one nats-server."""

    release: str
    codec: str
    python: Path
    server: str
    kv: Path

    def environment(self) -> dict[str, str]:
        """What a process of this release needs."""
        host = "lo" if self.release.startswith("1.3.") else "127.0.0.1"  # an interface, there
        return {
            "NATS_SERVER": self.server,
            "DYN_REQUEST_PLANE": "nats",
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(self.kv),
            "DYN_TCP_RESPONSE_STREAM_HOST": host,
            "DYN_REQUEST_PLANE_CODEC": self.codec,
            "DYN_LOG": "warn",
        }

    @asynccontextmanager
    async def client(self) -> AsyncGenerator["DynamoClient"]:
        """Run a client process."""
        peer = await Peer.start(self.python, "client", self.environment())
        try:
            yield DynamoClient(peer)
        finally:
            await peer.kill()

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator["DynamoWorker"]:
        """Run a worker process."""
        peer = await Peer.start(self.python, "worker", self.environment())
        try:
            yield DynamoWorker(peer, self.kv)
        finally:
            await peer.kill()

    @asynccontextmanager
    async def discovered(self, endpoint: Endpoint, subject: str = "") -> AsyncGenerator[None]:
        """Keep a discovery record that names our queue's subject, or another one.

        All records are instances of one Dynamo endpoint, whatever they name: see the client.
        """
        instance = _instance(endpoint)
        record: dict[str, Any] = {
            "type": "Endpoint",
            "component": DISCOVERED.component,
            "endpoint": DISCOVERED.endpoint,
            "namespace": DISCOVERED.namespace,
            "instance_id": instance,
            "transport": {"nats_tcp": subject or endpoint.request_subject(Lane.NORMAL, "dynamo")},
        }
        if self.release != "1.3.1":  # there the requester's variable decides
            record["request_plane_codec"] = self.codec
        file = _records(self.kv) / f"{_record_prefix(DISCOVERED)}{instance:x}"
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.kv / f"draft-{endpoint}"  # outside the watched folder
        draft.write_text(json.dumps(record))
        draft.rename(file)  # so nobody reads half a record
        owner = asyncio.create_task(_refreshed(file))
        try:
            yield
        finally:
            owner.cancel()
            file.unlink()


async def _refreshed(file: Path) -> None:
    while True:
        await asyncio.sleep(REFRESH)
        os.utime(file)


def _instance(endpoint: Endpoint) -> int:
    return crc32(str(endpoint).encode())


def _records(kv: Path) -> Path:
    return kv / "v1" / "instances"


def _found(kv: Path, endpoint: Endpoint) -> list[Path]:
    return list(_records(kv).glob(f"{_record_prefix(endpoint)}*"))


def _record_prefix(endpoint: Endpoint) -> str:
    return f"{endpoint.namespace}%2F{endpoint.component}%2F{endpoint.endpoint}%2F"


@dataclass(slots=True)
class Call:
    """One request of a Dynamo client."""

    peer: Peer
    number: int
    request_id: str

    async def started(self) -> None:
        """Wait until the prologue is there."""
        await self.peer.event(self.number, "started")

    async def reached(self) -> None:
        """Wait until the item of ``tell_at`` is there."""
        await self.peer.event(self.number, "reached")

    async def ended(self) -> Caller:
        """Wait for the stream's one end."""
        event = await self.peer.event(self.number, "ended", "failed")
        assert event["event"] == "ended", event
        error = event["error"]
        return Caller(event["items"], error and f"{error['type']}: {error['text']}")

    @property
    def ends(self) -> int:
        """How many ends the caller has seen."""
        return len(self.peer.seen(self.number, "ended"))


@dataclass(slots=True)
class DynamoClient:
    """A client process."""

    peer: Peer
    _calls: int = 0

    async def call(self, endpoint: Endpoint, request: dict[str, Any], **how: Any) -> Call:
        """Send a request: ``metadata``, ``tell_at``, ``stop_at``, ``drop_at``."""
        self._calls += 1
        request_id = f"{endpoint.endpoint}-{self._calls}"
        number = await self.peer.command(
            endpoint=str(DISCOVERED),
            instance=_instance(endpoint),
            request=request,
            request_id=request_id,
            **how,
        )
        return Call(self.peer, number, request_id)


@dataclass(slots=True)
class DynamoWorker:
    """A worker process."""

    peer: Peer
    kv: Path
    records: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    async def serve(self, endpoint: Endpoint) -> str:
        """Serve an endpoint; return the core NATS subject that the worker subscribes."""
        before = set(_found(self.kv, endpoint))  # of workers that were killed
        number = await self.peer.command(endpoint=str(endpoint))

        async def record() -> dict[str, Any] | None:
            failed = self.peer.seen(number, "failed")
            assert not failed, failed
            for file in set(_found(self.kv, endpoint)) - before:
                with suppress(ValueError):  # still being written
                    return dict(orjson.loads(file.read_bytes()))
            return None

        found = await eventually(record)
        assert found is not None
        self.records[str(endpoint)] = found
        return str(found["transport"]["nats_tcp"])

    async def saw(self, request_id: str, *what: str, count: int = 1) -> None:
        """Wait until the engine of a request saw one of these, so many times."""
        await self.peer.event(0, *(f"{one} {request_id}" for one in what), count=count)

    def runs(self, request_id: str) -> int:
        """How often the engine was started for a request."""
        return len(self.peer.seen(0, f"started {request_id}"))


async def freeze(process: Process) -> None:
    """SIGSTOP, and wait until each of the process's threads has stopped."""

    async def states() -> set[str]:
        return _states(process.pid)

    process.send_signal(signal.SIGSTOP)
    await eventually(states, lambda seen: seen == {"T"})


def _states(pid: int) -> set[str]:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in threads}


async def feed(client: QueueClient, endpoint: Endpoint, subject: str) -> None:
    """Let the queue push to a real worker: its lane's consumer delivers to that subject.

    A Dynamo worker answers a request's reply subject with an empty message before it parses
    anything; to JetStream an empty message is an acknowledgement. So a push consumer in the
    worker's queue group needs nothing between the two. Nothing is pushed while nobody listens.
    """
    lane, stream = Lane.NORMAL, endpoint.stream
    await client.api.request(f"CONSUMER.DELETE.{stream}.{lane}")
    await client.api.create_consumer(
        stream,
        {
            "name": lane.value,
            "durable_name": lane.value,
            "filter_subject": endpoint.lane_subject(lane),
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "deliver_subject": subject,
            "deliver_group": "q",
        },
    )

    async def listening() -> bool:
        return bool((await client.api.consumer_info(stream, lane)).get("push_bound"))

    await eventually(listening)  # the record is there before the subscription
