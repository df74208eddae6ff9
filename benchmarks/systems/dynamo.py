"""The peer: Dynamo's Python runtime, its own worker and client, on either request plane."""

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from benchmarks import environments
from benchmarks.child import Child, Usage
from benchmarks.systems.system import System
from dialback.queue.embedded_server import EmbeddedServer

RELEASE: Final = "1.6.1"
_ENDPOINT: Final = "bench.dynamo.generate"
_LOOP: Final = "uvloop"  # as Dynamo's own components run


@asynccontextmanager
async def dynamo(plane: str) -> AsyncGenerator[System]:
    """Run a worker and a client.

    Args:
        plane: Where requests travel: ``nats`` or ``tcp``. Answers always come over TCP.
    """
    python = str(environments.python_of(environments.dynamo(RELEASE)))
    arguments = [_LOOP, _ENDPOINT]
    with tempfile.TemporaryDirectory(prefix="dynamo-discovery-") as records:
        async with EmbeddedServer() as server:
            variables = _variables(plane, server.url, records)
            worker = Child(
                python, "benchmarks.peers.dynamo_worker", arguments, environment=variables
            )
            client = Child(
                python, "benchmarks.peers.dynamo_client", arguments, environment=variables
            )
            async with worker, client:
                assert worker.usage is not None  # noqa: S101 -- it runs
                usages = {"worker": worker.usage, "server": Usage(server.pid)}
                yield System(client, usages)


def _variables(plane: str, server: str, records: str) -> dict[str, str]:
    return {
        "NATS_SERVER": server,
        "DYN_REQUEST_PLANE": plane,
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": records,
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_LOG": "error",
    }
