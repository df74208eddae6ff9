"""A nats-server that may forbid pulls: it swallows them, and answers everything else."""

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from dialback.queue.embedded_server import EmbeddedServer

_PULLS = "$JS.API.CONSUMER.MSG.NEXT.>"


class GuardedServer:
    """One nats-server whose only user may, or may not, pull."""

    USER = "worker"
    PASSWORD = "secret"  # noqa: S105 -- of a server that lives for one test

    def __init__(self, folder: Path) -> None:
        self._config = folder / "server.conf"
        self._write("")
        self.server = EmbeddedServer(arguments=["-c", str(self._config)])

    @property
    def url(self) -> str:
        """Address of the server."""
        return self.server.url

    def forbid_pulls(self) -> None:
        """From now on pulls are swallowed; connected clients have to connect again."""
        self._write(f', permissions: {{publish: {{deny: "{_PULLS}"}}}}')
        os.kill(self.server.pid, signal.SIGHUP)

    def _write(self, permissions: str) -> None:
        user = f'{{user: "{self.USER}", password: "{self.PASSWORD}"{permissions}}}'
        self._config.write_text(f"authorization: {{users: [{user}]}}\n")


@asynccontextmanager
async def guarded_server(folder: Path) -> AsyncGenerator[GuardedServer]:
    """Run one; its configuration is written to ``folder``."""
    guarded = GuardedServer(folder)
    async with guarded.server:
        yield guarded
