"""A cluster of three nats-servers, to be hurt by tests: killed, put to rest, started again.

Source: jetstream section 5 (the configuration, and that healthz tells when a node has caught up).
"""

import asyncio
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from dialback.errors import QueueError
from dialback.queue.api import JetStreamApi
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import find_server
from support.eventually import eventually

NODES = 3
LIMIT = 90.0  # seconds for anything a cluster does
# Below the range of outgoing connections, so that nobody takes a dead node's port meanwhile.
_PORTS = range(12_000, 30_000)
_API_TIMEOUT = 2.0  # seconds; in an election nobody answers

_CONFIG = """
server_name: {name}
listen: "127.0.0.1:{client}"
http: "127.0.0.1:{http}"
ping_interval: "10s"
ping_max: 2
lame_duck_duration: "30s"
lame_duck_grace_period: "1s"
jetstream {{ store_dir: "{store}", max_mem: 256MB, max_file: 10GB, sync_interval: {sync} }}
cluster {{ name: C1, listen: "127.0.0.1:{route}", routes: [{routes}] }}
"""


@dataclass
class Node:
    """One nats-server of a cluster."""

    name: str
    client: int
    route: int
    http: int
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Its URL for clients."""
        return f"nats://127.0.0.1:{self.client}"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        """Start the process; see :meth:`healthy`."""
        assert not self.running, self.name
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [find_server(), "-c", str(self.folder / "conf")],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process, and to no other."""
        assert self.process is not None, self.name
        self.process.send_signal(number)

    async def ended(self) -> None:
        """Wait for the end of the process."""
        if self.process is not None:
            await asyncio.to_thread(self.process.wait, LIMIT)

    async def healthy(self) -> bool:
        """Whether it says so: in the cluster, and caught up with all its streams."""
        assert self.running, self.log
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session,
                session.get(f"http://127.0.0.1:{self.http}/healthz") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    @property
    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]


class Cluster:
    """Three nats-servers; use as an async context manager.

    Attributes:
        nodes: The servers, ``n0`` to ``n2``.
        client: A connection to look into them with.
    """

    client: QueueClient

    def __init__(self, *, sync_interval: str = "always") -> None:
        self._sync_interval = sync_interval
        self._folder = Path(tempfile.mkdtemp(prefix="dialback-cluster-"))
        self.nodes: tuple[Node, ...] = ()

    async def __aenter__(self) -> "Cluster":
        try:
            await self.start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self._end()

    async def start(self) -> None:
        """Start all nodes and wait until JetStream answers."""
        self.nodes = self._configured()
        for node in self.nodes:
            node.spawn()
        await self.healthy()
        self.client = await QueueClient.open(
            ServerAddress(url=self.url), name="cluster", role="operator", within=LIMIT
        )
        self._api = JetStreamApi(self.client.connection, timeout=_API_TIMEOUT)
        await self._answer("INFO")

    def _configured(self) -> tuple[Node, ...]:
        ports = _free_ports(3 * NODES)
        nodes = tuple(
            Node(f"n{i}", client, route, http, self._folder / f"n{i}")
            for i, (client, route, http) in enumerate(zip(*[iter(ports)] * 3, strict=True))
        )
        routes = ", ".join(f'"nats-route://127.0.0.1:{node.route}"' for node in nodes)
        for node in nodes:
            node.folder.mkdir()
            text = _CONFIG.format(
                name=node.name,
                client=node.client,
                http=node.http,
                route=node.route,
                store=node.folder / "js",
                sync=self._sync_interval,
                routes=routes,
            )
            (node.folder / "conf").write_text(text)
        return nodes

    @property
    def url(self) -> str:
        """The URLs of all nodes, separated by commas."""
        return ",".join(node.url for node in self.nodes)

    # --- faults -----------------------------------------------------------------------

    async def kill(self, *nodes: Node) -> None:
        """SIGKILL; the stores stay."""
        for node in nodes:
            node.signal(signal.SIGKILL)
        for node in nodes:
            await node.ended()

    async def lame_duck(self, node: Node) -> None:
        """SIGUSR2: give up leaderships, send the clients away, end. Waits for the end."""
        node.signal(signal.SIGUSR2)
        await node.ended()

    async def restart(self, *nodes: Node) -> None:
        """Start dead nodes again, and wait until every node has caught up."""
        for node in nodes:
            node.spawn()
        await self.healthy()

    async def step_down(self, stream: str, consumer: str | None = None) -> None:
        """Have the leader of a stream, or of a consumer, step down."""
        verb = f"STREAM.LEADER.STEPDOWN.{stream}"
        if consumer is not None:
            verb = f"CONSUMER.LEADER.STEPDOWN.{stream}.{consumer}"
        await self._api.request(verb)

    # --- what can be waited for -------------------------------------------------------

    async def healthy(self) -> None:
        """Wait until every running node is in the cluster and has caught up."""
        for node in self.nodes:
            if node.running:
                await eventually(node.healthy, within=LIMIT, every=0.1)

    async def stream_leader(self, stream: str) -> Node:
        """Wait until a stream has a leader that lives, and return it."""
        return await self._leader(lambda: self._api.stream_info(stream))

    async def consumer_leader(self, stream: str, consumer: str) -> Node:
        """Wait until a consumer has a leader that lives, and return it."""
        return await self._leader(lambda: self._api.consumer_info(stream, consumer))

    async def _leader(self, info: Callable[[], Awaitable[dict[str, Any]]]) -> Node:
        by_name = {node.name: node for node in self.nodes}

        async def observe() -> Node | None:
            try:
                name = (await info())["cluster"].get("leader", "")
            except QueueError:
                return None
            node = by_name.get(name)
            return node if node is not None and node.running else None

        node = await eventually(observe, lambda found: found is not None, within=LIMIT)
        assert node is not None
        return node

    async def _answer(self, verb: str) -> dict[str, Any]:
        async def observe() -> dict[str, Any] | None:
            try:
                return await self._api.request(verb)
            except QueueError:
                return None

        answer = await eventually(observe, lambda found: found is not None, within=LIMIT)
        assert answer is not None
        return answer

    async def _end(self) -> None:
        await self.kill(*(node for node in self.nodes if node.running))
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on; all are held until all are found."""
    held: list[socket.socket] = []
    try:
        for port in random.sample(_PORTS, len(_PORTS)):
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                candidate.close()
                continue
            held.append(candidate)
            if len(held) == count:
                return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()
    raise AssertionError("no free ports")
