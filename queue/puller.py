"""The pull loop: asks each lane for as many messages as there are free slots, no more.

Two alternating steps. *Probe*: a ``no_wait`` pull on each lane, most urgent first, until the
free slots are filled; the server answers with messages, and with 404 when it has fewer. *Wait*:
when all lanes are empty, one lingering pull of a single message on every lane, under one inbox;
the first message, or a changed number of slots, ends the wait, and dropping the inbox cancels
the other pulls. Data is counted, statuses are attributed by their inbox, and any doubt (a
reconnect, missing heartbeats, a status that is none of the ordinary ones) starts over. A lane
that fails keeps no other lane waiting: the pass goes on, then the loop backs off.

Source: jetstream sections 1.2 to 1.5 and 2.5; ADR-13 (pull requests and status codes).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from dialback.metrics.names import PullErrorKind
from dialback.queue.delivery import NAK, DeliveryInfo, parse_ack_subject
from dialback.queue.lane_repair import LaneRepair, Restore

logger = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_PROBE_TIMEOUT: Final = 2.0
_LATE_GRACE: Final = 5.0  # seconds a dropped inbox still listens for messages under way
_MAX_BACKOFF: Final = 1.0
_FLUSH_TIMEOUT: Final = 2  # at the end; nats-py's 10 would use up a shutdown budget
_NO_MESSAGES: Final = frozenset({"404", "408"})
_HEARTBEAT: Final = "100"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSettings:
    """How to pull.

    Attributes:
        expires: Seconds a lingering pull lives.
        heartbeat: Seconds between the server's idle heartbeats; two missed ones are a fault.
        max_batch: Most messages in one pull; the consumer refuses more.
    """

    expires: float = 30.0
    heartbeat: float = 5.0
    max_batch: int = 64


@dataclass(slots=True)
class PullEvents:
    """What the pull loop reports.

    Attributes:
        pulled: A pull was answered or a heartbeat came: pulling works.
        failed: A pull went wrong.
        handed_back: A message was given back: no slot was free for it, or it came too late.
    """

    pulled: Callable[[], None] = field(default=lambda: None)
    failed: Callable[[PullErrorKind], None] = field(default=lambda _: None)
    handed_back: Callable[[], None] = field(default=lambda: None)


@dataclass(slots=True)
class _Probe:
    """One ``no_wait`` pull under way."""

    lane: str
    wanted: int
    done: asyncio.Future[str]
    received: int = 0

    def finish(self, status: str) -> None:
        if not self.done.done():
            self.done.set_result(status)


class Puller:
    """Pulls from the lanes of one stream until it is stopped.

    Args of the constructor:
        client: Connected client.
        stream: Stream name.
        lanes: Consumer names, most urgent first.
        free: Returns the number of free slots.
        accept: Takes a message on the event loop; False if there is no slot for it. It is
            told a monotonic time before which the message had not been asked for.
        restore: Creates streams and consumers that are missing; called, at most every few
            seconds, when a lane's may have been deleted.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        lanes: Sequence[str],
        *,
        free: Callable[[], int],
        accept: Callable[[Msg, DeliveryInfo, float], bool],
        settings: PullSettings | None = None,
        events: PullEvents | None = None,
        restore: Restore | None = None,
    ) -> None:
        self._client = client
        self._stream = stream
        self._lanes = lanes
        self._free = free
        self._accept = accept
        self._settings = settings or PullSettings()
        self._events = events or PullEvents()
        self._repair = LaneRepair(stream, restore)
        self._kick = asyncio.Event()
        self._stopping = False
        self._reset = False
        self._inbox: Subscription | None = None
        self._probe: _Probe | None = None
        self._waiting: str | None = None
        self._arrived = False
        self._heard = 0.0
        self._failures = 0
        self._serial = 0
        self._retired: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    # --- told from outside ------------------------------------------------------------

    def slots_changed(self) -> None:
        """A slot became free, or was taken by something else."""
        self._kick.set()

    def reset(self) -> None:
        """The connection was re-established: the server has forgotten our pulls."""
        self._events.failed(PullErrorKind.RECONNECTED)
        self.start_over()

    def start_over(self) -> None:
        """Forget the pulls under way, and ask anew."""
        self._reset = True
        self._kick.set()

    def stop(self) -> None:
        """Pull nothing more; :meth:`run` returns soon."""
        self._stopping = True
        self._kick.set()

    # --- the loop ---------------------------------------------------------------------

    async def run(self) -> None:
        """Pull until stopped. Messages that arrive late are handed back."""
        try:
            while not self._stopping:
                await self._turn()
        finally:
            await self._drop_inbox()
            with suppress(nats.errors.Error, TimeoutError, OSError):
                await self._client.flush(_FLUSH_TIMEOUT)  # what was under way has arrived
            self._ended.set()
            await self._repair.close()
            await asyncio.gather(*self._retired)

    async def _turn(self) -> None:
        self._kick.clear()
        if self._reset:
            self._reset = False
            await self._drop_inbox()
        if not self._client.is_connected or self._free() <= 0:
            await self._sleep(self._settings.heartbeat)
            return
        try:
            if self._inbox is None:
                await self._open_inbox()
            taken = await self._probe_lanes()
            if taken == 0 and not self._stopping and not self._reset:
                await self._wait_for_message()
            self._failures = 0
        except _PullFailedError as error:
            await self._back_off(error.reason)
        except (nats.errors.Error, OSError) as error:
            self._events.failed(PullErrorKind.STATUS)
            await self._back_off(str(error))

    async def _probe_lanes(self) -> int:
        """Take what there is; only then raise what went wrong with a lane.

        Raises:
            _PullFailedError: If a lane failed and the others had nothing.
        """
        taken, failure = 0, None
        for lane in self._lanes:
            free = self._free()
            if free <= 0 or self._stopping or self._reset:
                break
            wanted = min(free, self._settings.max_batch)
            try:
                received = await self._probe_lane(lane, wanted)
            except _PullFailedError as error:
                self._events.failed(error.kind)
                self._repair.status_seen(error.reason, lane)
                failure = failure or error
                continue
            taken += received
            if received >= wanted:
                break  # it may have more: a slot freed meanwhile is not for the lanes below
        if failure is not None and taken == 0:
            raise failure
        return taken

    async def _probe_lane(self, lane: str, wanted: int) -> int:
        probe = _Probe(lane, wanted, asyncio.get_running_loop().create_future())
        self._probe = probe
        try:
            await self._request(lane, self._reply(), {"batch": wanted, "no_wait": True})
            async with asyncio.timeout(_PROBE_TIMEOUT):
                status = await probe.done
        except TimeoutError as error:
            raise _PullFailedError(
                PullErrorKind.MISSED_HEARTBEATS, "no answer to a pull"
            ) from error
        finally:
            self._probe = None
        if status and status not in _NO_MESSAGES:
            raise _PullFailedError(PullErrorKind.STATUS, status)
        self._events.pulled()
        return probe.received

    async def _wait_for_message(self) -> None:
        """Linger on all lanes until a message comes, a slot changes or the pulls expire."""
        settings = self._settings
        self._arrived = False
        self._waiting = ""
        reply = self._reply()
        body = {
            "batch": 1,
            "expires": round(settings.expires * _NS),
            "idle_heartbeat": round(settings.heartbeat * _NS),
        }
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        end = self._heard + settings.expires
        try:
            for lane in self._lanes:
                await self._request(lane, reply, body)
            while not self._wait_is_over(loop.time(), end):
                await self._sleep(settings.heartbeat / 2)
        finally:
            status, self._waiting = self._waiting, None
            await self._drop_inbox()
        if status:
            self._events.failed(PullErrorKind.STATUS)
            self._repair.status_seen(status)  # of which lane, it does not say
            raise _PullFailedError(PullErrorKind.STATUS, status)
        if loop.time() - self._heard > 2 * settings.heartbeat + 0.5:
            self._events.failed(PullErrorKind.MISSED_HEARTBEATS)
            raise _PullFailedError(PullErrorKind.MISSED_HEARTBEATS, "heartbeats are missing")

    def _wait_is_over(self, now: float, end: float) -> bool:
        return bool(
            self._arrived
            or self._stopping
            or self._reset
            or self._waiting
            or now >= end
            or now - self._heard > 2 * self._settings.heartbeat + 0.5
            or self._free() <= 0
        )

    async def _request(self, lane: str, reply: str, body: Mapping[str, object]) -> None:
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{lane}"
        await self._client.publish(subject, orjson.dumps(body), reply=reply)

    async def _sleep(self, seconds: float) -> None:
        """Wait for a kick, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._kick.wait()
        self._kick.clear()

    async def _back_off(self, reason: str) -> None:
        self._failures = min(self._failures + 1, 6)
        delay = min(_MAX_BACKOFF, 0.05 * 2.0**self._failures) * random.uniform(0.5, 1.5)  # noqa: S311
        logger.log(
            logging.WARNING if self._failures == 1 else logging.DEBUG,
            "pull failed, starting over",
            extra={"reason": reason, "stream": self._stream, "delay": round(delay, 3)},
        )
        await self._drop_inbox()
        if not self._stopping:
            await asyncio.sleep(delay)

    # --- what arrives -----------------------------------------------------------------

    async def _received(self, asked: float, message: Msg) -> None:
        info = parse_ack_subject(message.reply)
        if info is None:
            self._status(message)
            return
        self._heard = asyncio.get_running_loop().time()
        if self._stopping or not self._accept(message, info, asked):
            await self._client.publish(message.reply, NAK)
            self._events.handed_back()
        probe = self._probe
        if probe is not None and probe.lane == info.consumer:
            probe.received += 1
            if probe.received >= probe.wanted:
                probe.finish("")
        self._arrived = True
        self._kick.set()

    def _status(self, message: Msg) -> None:
        if self._inbox is None or not message.subject.startswith(self._prefix()):
            return  # of an inbox that was dropped
        status = (message.headers or {}).get("Status", "")
        self._heard = asyncio.get_running_loop().time()
        if status == _HEARTBEAT:
            self._events.pulled()
        elif self._probe is not None and message.subject == self._reply(new=False):
            self._probe.finish(status)
        elif self._waiting is not None and message.subject == self._reply(new=False):
            # 408: the pull expired, as it should. Anything else ends the wait.
            self._waiting = "" if status in _NO_MESSAGES else status
            self._kick.set()

    # --- inboxes ----------------------------------------------------------------------

    def _prefix(self) -> str:
        assert self._inbox is not None  # noqa: S101 -- opened before any pull
        return self._inbox.subject.removesuffix("*")

    def _reply(self, *, new: bool = True) -> str:
        """Return the inbox of the next pull, or of the current one."""
        if new:
            self._serial += 1
        return f"{self._prefix()}{self._serial}"

    async def _open_inbox(self) -> None:
        self._inbox = await self._client.subscribe(  # pyright: ignore[reportUnknownMemberType]
            f"{self._client.new_inbox()}.*", cb=partial(self._received, time.monotonic())
        )

    async def _drop_inbox(self) -> None:
        """Cancel the pulls of this inbox, but take what is under way."""
        inbox, self._inbox = self._inbox, None
        if inbox is None:
            return
        with suppress(nats.errors.Error, OSError):
            # UNSUB makes the server drop the pulls; the local subscription stays a while.
            await self._client._send_unsubscribe(inbox._id)  # pyright: ignore[reportPrivateUsage]
        task = asyncio.create_task(self._forget(inbox), name="drop-inbox")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _forget(self, inbox: Subscription) -> None:
        """Remove a dropped inbox after a while, or when the loop has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LATE_GRACE):
                await self._ended.wait()
        with suppress(nats.errors.Error, OSError):
            await inbox.unsubscribe()


class _PullFailedError(Exception):
    """A pull went wrong; start over after a while."""

    def __init__(self, kind: PullErrorKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
