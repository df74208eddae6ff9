"""(i) What it costs when nats-server syncs every message to disk: publish and drain."""

import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.child import Child, Usage
from benchmarks.measurement import Contestant, Run, alternate
from benchmarks.queue_half.backlog import Backlog
from benchmarks.queue_half.rig import SLOTS, draining
from benchmarks.queue_half.systems import dialback
from benchmarks.scenario import Figures, Lab, Scenario
from dialback.queue.embedded_server import EmbeddedServer

_REQUESTS: Final = 1_000
_REQUESTS_FULL: Final = 10_000
_AT_ONCE: Final = 64
_ALWAYS: Final = "jetstream { sync_interval: always }\n"
_NOTES: Final = (
    (
        "By default nats-server acknowledges what the operating system has, and syncs every two"
        " minutes: a crash of the process loses nothing, one of the machine may. With `always` it"
        " syncs before it acknowledges. What that costs is the disk's business."
    ),
)


async def _measure(lab: Lab) -> list[Figures]:
    count = _REQUESTS_FULL if lab.full else _REQUESTS
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-nats-"))
        config = Path(folder) / "always.conf"
        config.write_text(_ALWAYS, encoding="utf-8")
        servers = {
            "default": await stack.enter_async_context(EmbeddedServer()),
            "always": await stack.enter_async_context(
                EmbeddedServer(arguments=["-c", str(config)])
            ),
        }
        publishing = {name: partial(_publish, one, count) for name, one in servers.items()}
        drains = {name: draining(one, dialback(), count) for name, one in servers.items()}
        return [
            await _figures(lab, f"publishing {count:,} requests, {_AT_ONCE} in flight", publishing),
            await _figures(lab, f"draining {count:,} requests, {SLOTS} in flight", drains),
        ]


async def _figures(lab: Lab, title: str, contestants: Mapping[str, Contestant]) -> Figures:
    named = {f"sync_interval {name}": contestant for name, contestant in contestants.items()}
    runs = await alternate(named, lab.rounds, progress=lab.progress)
    return Figures(title=title, unit="requests", runs=runs, notes=_NOTES)


async def _publish(server: EmbeddedServer, count: int) -> Run:
    serving = Usage(server.pid)
    async with (
        Backlog(server.url, None),
        Child(sys.executable, "benchmarks.queue_half.publishing") as client,
    ):
        assert client.usage is not None  # noqa: S101 -- entered
        client_before, server_before = client.usage.cpu(), serving.cpu()
        answer = await client.ask(do="publish", server=server.url, count=count, at_once=_AT_ONCE)
        cpu = {
            "client": client.usage.cpu() - client_before,
            "server": serving.cpu() - server_before,
        }
        return Run(units=count, seconds=answer["seconds"], cpu=cpu)


SCENARIOS: Final = [
    Scenario(letter="i", title="sync_interval default and always", measure=_measure)
]
