"""Leases: every running delivery is renewed from a thread with its own connection.

An engine may block the event loop for longer than ``ack_wait``; the messages must not go to
another worker because of that. So the renewals (``+WPI``) come from a thread with a loop and a
connection of its own, and they are *confirmed*: the server never says that a lease was lost,
so a lease is lost when its last confirmation is older than ``ack_wait``. Then nothing is
renewed and nothing is settled any more.

Source: jetstream section 2.1, overview section 8.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.aio.client import Client

from dialback.errors import DialbackError, ServerUnavailableError
from dialback.queue.connection import ConnectionEvents, ServerAddress, close, connect
from dialback.queue.delivery import IN_PROGRESS
from dialback.queue.loop_clock import LoopClock
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 3
_STOP_TIMEOUT: Final = 30.0  # seconds for the thread to close its connection


class Lease(msgspec.Struct):
    """One delivery's lease.

    Attributes:
        reply: The delivery's ack subject.
        on_lost: Called once, on the worker's event loop, when the lease is lost.
        ack_wait: Seconds it lasts after a confirmation.
        confirmed: Monotonic time of the last confirmation; first: of the delivery, or before.
        lost: Whether it was given up.
    """

    reply: str
    on_lost: Callable[[], None]
    ack_wait: float
    confirmed: float
    lost: bool = False

    def expired(self, now: float) -> bool:
        """Whether another worker may have the message by now.

        Whoever settles must ask: the thread notices only when it runs, which may be too late
        in a process that was stopped. The monotonic clock runs on meanwhile.
        """
        return self.lost or now - self.confirmed > self.ack_wait


class LeaseReport(Protocol):
    """Is told which leases are held: a supervisor, by the link of ``supervised.py``.

    Called on the worker's event loop and on the lease thread, never at the same time: in the
    order in which things happened. It must neither wait nor raise.
    """

    def held(self, reply: str, confirmed: float) -> None:
        """A delivery is held; its lease was confirmed at this monotonic time."""

    def released(self, reply: str) -> None:
        """A delivery is settled, or its lease was lost."""


class LeaseKeeper:
    """Renews leases from a thread of its own.

    ``add``, ``remove`` and ``loop_turned`` are called on the worker's event loop.
    """

    def __init__(
        self,
        server: ServerAddress,
        *,
        name: str,
        ack_wait: float,
        within: float = 5.0,
        stuck_limit: float | None = None,
        on_late: Callable[[], None] = lambda: None,
        on_closed: Callable[[], None] = lambda: None,
        report: LeaseReport | None = None,
    ) -> None:
        """Prepare; :meth:`start` starts the thread.

        Args:
            server: Which server, and as whom.
            name: Connection name.
            ack_wait: Seconds a lease lasts; renewed three times in it.
            within: Seconds for the first connect.
            stuck_limit: Seconds the event loop may stand still before the leases are given
                up; 0 or ``None``: 10 times ``ack_wait``.
            on_late: Called (on the thread) for each renewal that was not confirmed in time.
            on_closed: Called (on the worker's event loop) when the thread's connection is
                closed for good: no lease can be kept any more.
            report: Is told which leases are held.
        """
        self._server = server
        self._name = name
        self._ack_wait = ack_wait
        self._stuck_limit = stuck_limit or 10 * ack_wait
        self._within = within
        self._on_late = on_late
        self._on_closed = on_closed
        self._report = report
        self._lock = threading.Lock()  # what is held, and what is reported, change as one
        self._leases: dict[str, Lease] = {}
        self._owner: asyncio.AbstractEventLoop | None = None
        self._clock = LoopClock(time.monotonic())
        self._renewer: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the thread's
        self._stop = asyncio.Event()  # set on the thread's loop
        self._failure: BaseException | None = None
        self._started = threading.Event()

    async def start(self) -> None:
        """Start the thread and wait until it is connected.

        If this fails or is cancelled, the thread ends by itself; :meth:`stop` waits for that.

        Raises:
            ServerUnavailableError: If no server answers in time, or :meth:`stop` was called.
            QueueError: If it cannot connect.
        """
        self._owner = asyncio.get_running_loop()
        self._loop = loop = asyncio.new_event_loop()  # here: a stop may come before the thread runs
        renewer = threading.Thread(
            target=self._run, args=(loop,), name="dialback-leases", daemon=True
        )
        renewer.start()
        self._renewer = renewer
        limit = 3 * self._within  # a probe, the connect itself, and closing after them
        in_time = False
        try:
            in_time = await asyncio.to_thread(self._started.wait, limit)
        finally:
            if not in_time:
                self._request_stop()
        if not in_time:
            raise ServerUnavailableError(f"the lease thread did not connect in {limit:g} s")
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Stop renewing and close the connection; whatever :meth:`start` came to."""
        self._request_stop()
        if self._renewer is None:
            return
        await asyncio.to_thread(self._renewer.join, _STOP_TIMEOUT)
        if self._renewer.is_alive():
            logger.warning("the lease thread does not end")

    def _request_stop(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the thread has ended
                self._loop.call_soon_threadsafe(self._stop.set)

    def add(self, reply: str, on_lost: Callable[[], None], *, asked: float = 0.0) -> Lease:
        """Keep the lease of a delivery that is handed over now.

        Args:
            reply: The delivery's ack subject.
            on_lost: Called once, on the worker's event loop, when the lease is lost.
            asked: Monotonic time before which the message had not been asked for.
        """
        lease = Lease(reply, on_lost, self._ack_wait, self._delivered(time.monotonic(), asked))
        with self._lock:
            self._leases[reply] = lease
            if self._report is not None:
                self._report.held(reply, lease.confirmed)
        return lease

    def remove(self, lease: Lease) -> None:
        """The delivery is settled, or is not to be renewed any more."""
        self._drop(lease)
        lease.on_lost = _nobody  # it refers to who holds the lease: a cycle for the collector

    def loop_turned(self) -> None:
        """The worker's event loop is alive; call it every half second."""
        self._clock.turned(time.monotonic())

    def came_late(self, asked: float) -> bool:
        """Whether a message that is handed over now may be another worker's already.

        It may have lain in the socket while the event loop stood still. The next renewals
        come within ``ack_wait`` / 3: a lease that has no more left could end before them.

        Args:
            asked: Monotonic time before which the message had not been asked for.
        """
        now = time.monotonic()
        age = now - self._delivered(now, asked)
        return age > self._ack_wait - self._ack_wait / RENEWALS_PER_LEASE

    def _delivered(self, now: float, asked: float) -> float:
        """Return the earliest time at which the server may have begun the lease."""
        return max(asked, self._clock.read_after(now))

    def _drop(self, lease: Lease) -> bool:
        """Forget a lease; return whether it was still kept."""
        with self._lock:
            if self._leases.get(lease.reply) is not lease:
                return False  # a restarted server may use the same reply again
            del self._leases[lease.reply]
            if self._report is not None:
                self._report.released(lease.reply)
            return True

    def __len__(self) -> int:
        return len(self._leases)

    # --- on the thread ----------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._keep())
        except DialbackError as error:
            self._failure = error
        except Exception as error:
            self._failure = error
            logger.exception("lease thread ended")
            self._closed()
        finally:
            self._started.set()

    async def _keep(self) -> None:
        client = await self._connect()
        self._started.set()
        interval = self._ack_wait / RENEWALS_PER_LEASE
        renewals: set[asyncio.Task[None]] = set()
        try:
            while not self._stop.is_set():
                for lease in list(self._leases.values()):
                    task = asyncio.create_task(self._renew(client, lease), name="renew-lease")
                    renewals.add(task)
                    task.add_done_callback(renewals.discard)
                await _wait(self._stop, interval)
        finally:
            for task in renewals:
                task.cancel()
            await close(client)

    async def _connect(self) -> Client:
        """Connect; a stop cuts it short."""
        opening = connect(
            self._server,
            name=self._name,
            role="lease",
            within=self._within,
            events=ConnectionEvents(closed=self._closed),
        )
        connecting = asyncio.create_task(opening, name="connect-leases")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((connecting, stopping), return_when=asyncio.FIRST_COMPLETED)
        await cancel_and_wait(connecting, stopping)
        if connecting.cancelled():
            raise ServerUnavailableError("the lease thread was stopped before it was connected")
        return connecting.result()

    async def _renew(self, client: Client, lease: Lease) -> None:
        now = time.monotonic()
        if lease.expired(now):
            self._lose(lease, "no renewal was confirmed in time")
            return
        if now - self._clock.last > self._stuck_limit:
            self._lose(lease, "the event loop stands still")
            return
        if not client.is_connected:  # nats-py would send it at the reconnect, too late
            self._on_late()
            return
        try:
            await client.request(lease.reply, IN_PROGRESS, timeout=self._ack_wait)
        except (nats.errors.Error, TimeoutError, asyncio.InvalidStateError, OSError):
            self._on_late()
        except Exception:
            self._on_late()
            logger.exception("a renewal failed")
        else:
            # Counted from before the request: the server may have renewed that early.
            self._confirm(lease, now)

    def _confirm(self, lease: Lease, at: float) -> None:
        with self._lock:
            lease.confirmed = max(lease.confirmed, at)
            if self._report is not None and self._leases.get(lease.reply) is lease:
                self._report.held(lease.reply, lease.confirmed)

    def _lose(self, lease: Lease, why: str) -> None:
        if lease.lost or not self._drop(lease):
            return
        lease.lost = True
        logger.warning("lease lost", extra={"reason": why, "reply": lease.reply})
        self._tell_owner(lease.on_lost)

    def _closed(self) -> None:
        if not self._stop.is_set():
            self._tell_owner(self._on_closed)

    def _tell_owner(self, callback: Callable[[], None]) -> None:
        assert self._owner is not None  # noqa: S101 -- set by start()
        with suppress(RuntimeError):  # its loop is closed: there is nobody to tell
            self._owner.call_soon_threadsafe(callback)


def _nobody() -> None:
    pass


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
