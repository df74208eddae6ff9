"""The supervisor of ``dialback worker run --processes N``: N workers, started and kept.

Each process is a full worker. When one dies, the messages it held go back to the queue within
milliseconds and not after ``ack_wait`` (:mod:`dialback.held_leases`), and another process
takes its place after a while (:mod:`dialback.restarts`). Without NATS the processes are kept
all the same.

Source: jetstream section 2.1, operator 2.2.
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from dialback.held_leases import HeldLeases
from dialback.queue.orphans import Orphans
from dialback.restarts import GiveUp, Restarts, code_when_told, exit_code_of, worst
from dialback.settings import Settings
from dialback.signals import on_signals
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

_KILL_AFTER: Final = 10.0  # seconds on top of the shutdown budget
_HAND_BACK_LIMIT: Final = 5.0  # seconds to wait at the end for what is still handed back
_CHUNK: Final = 65536
_NO_START: Final = 71  # sysexits: the operating system refused


class Child:
    """One worker process and the supervisor's end of the link to it."""

    def __init__(self, process: asyncio.subprocess.Process, link: socket.socket, ack_wait: float):
        self.process = process
        self.leases = HeldLeases(ack_wait)
        self.started = time.monotonic()
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(link, self._read)

    @classmethod
    async def start(cls, command: Sequence[str], settings: Settings) -> "Child":
        """Start a worker process.

        It gets a session of its own: a terminal's Ctrl-C reaches the supervisor only, which
        passes it on.

        Raises:
            OSError: If it cannot be started.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    "--supervised-by",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=settings.environment(),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        return cls(process, ours, settings.ack_wait)

    async def ended(self) -> int:
        """Wait for its end and read its last words; return its return code, -N for a signal."""
        try:
            returncode = await self.process.wait()
            self._read()  # all it wrote: the engine's own children may keep the socket open
        finally:
            self._loop.remove_reader(self._link)
            self._link.close()
        return returncode

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def _read(self) -> None:
        try:
            while data := self._link.recv(_CHUNK):
                self.leases.feed(data)
        except BlockingIOError:
            return
        except ConnectionError:
            pass
        self._loop.remove_reader(self._link)


@dataclass(frozen=True, slots=True)
class _End:
    """How a process ended: -N for a signal; whether it had pulled; deliveries; seconds it lived."""

    returncode: int
    ready: bool = False
    held: int = 0
    lived: float = 0.0


class Supervisor:
    """Keeps a number of worker processes running."""

    def __init__(self, command: Sequence[str], settings: Settings) -> None:
        """Prepare; :meth:`run` starts the processes.

        Args:
            command: The command line of one worker.
            settings: Theirs, and how many there are to be.
        """
        self._command = command
        self._settings = settings
        self._orphans = Orphans(
            settings.server_address(),
            name=f"dialback-supervisor-{settings.worker_name}",
            within=settings.connect_within,
        )
        self._restarts = Restarts(settings.processes)
        self._children: set[Child] = set()
        self._hand_backs: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._gave_up: int | None = None

    async def run(self) -> int:
        """Keep the processes until SIGTERM or SIGINT, let them drain; return the exit code.

        It is that of the process that gave the reason to give up, or the worst of those that
        were told to end (:func:`dialback.restarts.worst`).
        """
        connecting = asyncio.create_task(self._orphans.run(), name="orphans")
        numbers = range(self._settings.processes)
        try:
            async with on_signals(self.stop):
                codes = await asyncio.gather(*(self._keep(number) for number in numbers))
            if self._hand_backs:
                await asyncio.wait(self._hand_backs, timeout=_HAND_BACK_LIMIT)
        finally:
            await cancel_and_wait(connecting, *self._hand_backs)
        code = worst(codes) if self._gave_up is None else self._gave_up
        logger.info("supervisor ended", extra={"exit_code": code})
        return code

    # --- one place for a process ------------------------------------------------------

    async def _keep(self, number: int) -> int:
        """Have a process in this place; return the exit code of one that was told to end."""
        settings = child_settings(self._settings, number)
        while not self._stop.is_set():
            end = await self._live(settings)
            code = exit_code_of(end.returncode)
            if self._stop.is_set():
                return code_when_told(end.returncode, ready=end.ready, held=end.held)
            decision = self._restarts.died(number, code=code, lived=end.lived, ready=end.ready)
            if isinstance(decision, GiveUp):
                logger.error("giving up: %s", decision.why, extra={"exit_code": code})
                self._gave_up = code
                self.stop()
                return code
            logger.warning(
                "starting a worker process again",
                extra={"worker": settings.worker_name, "delay": round(decision.delay, 2)},
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(decision.delay):
                    await self._stop.wait()
        return 0

    async def _live(self, settings: Settings) -> "_End":
        """Start a process, wait for its end and hand back what it held."""
        try:
            child = await Child.start(self._command, settings)
        except OSError as error:
            logger.error(  # noqa: TRY400 -- the reason says it
                "a worker process could not be started",
                extra={"worker": settings.worker_name, "reason": str(error)},
            )
            return _End(_NO_START)
        facts: dict[str, object] = {"worker": settings.worker_name, "pid": child.process.pid}
        logger.info("worker process started", extra=facts)
        self._children.add(child)
        if self._stop.is_set():
            child.signal(signal.SIGTERM)
        try:
            returncode = await child.ended()
        finally:
            self._children.discard(child)
        now = time.monotonic()
        end = _End(returncode, child.leases.ready, len(child.leases), now - child.started)
        for lease in child.leases.alive(now):
            task = asyncio.create_task(self._hand_back(lease.reply, lease.until), name="hand-back")
            self._hand_backs.add(task)
            task.add_done_callback(self._hand_backs.discard)
        facts |= {"exit_code": exit_code_of(returncode), "held": end.held}
        level = logging.INFO if self._stop.is_set() else logging.ERROR
        logger.log(level, "worker process ended", extra=facts | {"lived": round(end.lived, 1)})
        return end

    async def _hand_back(self, reply: str, until: float) -> None:
        confirmed = await self._orphans.hand_back(reply, until)
        logger.log(
            logging.INFO if confirmed else logging.WARNING,
            "message of a dead process handed back"
            if confirmed
            else "message of a dead process left to its lease",
            extra={"reply": reply},
        )

    # --- the end ----------------------------------------------------------------------

    def stop(self) -> None:
        """Have the processes drain; a second call hurries them. In the end they are killed."""
        if not self._stop.is_set():
            self._stop.set()
            limit = self._settings.shutdown_budget + _KILL_AFTER
            asyncio.get_running_loop().call_later(limit, self._kill)
        for child in self._children:
            child.signal(signal.SIGTERM)

    def _kill(self) -> None:
        for child in self._children:
            logger.error("worker process did not end", extra={"pid": child.process.pid})
            child.signal(signal.SIGKILL)


def child_settings(settings: Settings, number: int) -> Settings:
    """Return the settings of one process: a name and a status port of its own.

    Args:
        settings: The supervisor's.
        number: The process's, from 0. A fixed status port is that of the first one, the
            others take those above.
    """
    port = settings.status_port
    return settings.model_copy(
        update={
            "processes": 1,
            "worker_name": f"{settings.worker_name}-{number}",
            "status_port": port + number if port > 0 else port,
        }
    )
