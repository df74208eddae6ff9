"""F9: what is left of acknowledged requests after a power cut. Run by ``power_loss.sh``."""

import argparse
import asyncio
import fcntl
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from dialback.errors import DialbackError
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane, QueueSettings, Topology

_SHUTDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)
_NO_LOG_FLUSH: Final = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH
_ENDPOINT: Final = Endpoint("power", "loss", "test")
_PUBLISHERS: Final = 8
_SECONDS: Final = 4.0  # of load before the cut


async def _load(client: QueueClient, acknowledged: set[str]) -> None:
    """Publish as fast as it goes, until nothing is acknowledged any more."""

    async def publisher(name: int) -> None:
        number = 0
        while True:
            number += 1
            token = f"r-{name}-{number}"
            subject = _ENDPOINT.request_subject(Lane.NORMAL, token)
            try:
                await client.publisher.publish(subject, bytes(1024), {}, retry=False)
            except DialbackError:
                return
            acknowledged.add(token)

    await asyncio.gather(*(publisher(name) for name in range(_PUBLISHERS)))


async def _connect(server: EmbeddedServer) -> QueueClient:
    return await QueueClient.open(ServerAddress(url=server.url), name="power", role="operator")


async def _cut(store: Path, server: EmbeddedServer) -> None:
    """Take the power: what has not reached the disk never will."""
    handle = os.open(store, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(handle)
    await server.kill()


async def run(disk: Path, store: Path, sync: str) -> int:
    """Cut the power under load; return how many acknowledged requests are lost."""
    config = store.parent / "server.conf"
    config.write_text(f"jetstream {{ sync_interval: {sync} }}\n")
    server = EmbeddedServer(store=store, arguments=["-c", str(config)])
    await server.start()
    client = await _connect(server)
    await Topology(client.api, _ENDPOINT, QueueSettings()).ensure()
    acknowledged: set[str] = set()
    load = asyncio.create_task(_load(client, acknowledged))
    await asyncio.sleep(_SECONDS)
    await _cut(store, server)
    await load
    await client.close()
    subprocess.run(["umount", str(store)], check=True)  # noqa: S607, ASYNC221
    subprocess.run(["mount", "-o", "loop", str(disk), str(store)], check=True)  # noqa: S607, ASYNC221
    begun = time.monotonic()
    await server.start()
    client = await _connect(server)
    try:
        found = await _found(client)
    finally:
        await client.close()
        await server.stop()
    lost = acknowledged - found
    sys.stdout.write(
        f"F9 power loss, R1, sync_interval {sync}: acknowledged {len(acknowledged)},"
        f" lost {len(lost)}, back after {time.monotonic() - begun:.2f} s\n"
    )
    return len(lost)


async def _found(client: QueueClient) -> set[str]:
    names = await client.api.stream_names()
    if _ENDPOINT.stream not in names:
        return set()
    stored = client.api.messages(_ENDPOINT.stream, limit=10_000_000)
    return {message.subject.rpartition(".")[2] async for message in stored}


def main() -> int:
    """Run it as ``power_loss.sh`` says; fail if anything acknowledged is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--sync", required=True)
    given = parser.parse_args()
    return 1 if asyncio.run(run(given.disk, given.store, given.sync)) else 0


if __name__ == "__main__":
    sys.exit(main())
