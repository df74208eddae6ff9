"""The pull loop: asks each lane for as many messages as there are slots for it, no more.

Two alternating steps. *Probe*: a ``no_wait`` pull on each lane, most urgent first, until the
slots are filled; the server answers with messages, and with 404 when it has fewer. *Wait*: when
all lanes are empty, one lingering pull of a single message on every lane; the first message, or
a changed number of slots, ends the wait, and dropping the inbox cancels the other pulls. Any
doubt (a reconnect, a lane's missing heartbeats, a status that is none of the ordinary ones)
starts over. A lane that fails keeps no other lane waiting: the pass goes on, then the loop
backs off.

Source: jetstream sections 1.2 to 1.5 and 2.5; ADR-13 (pull requests and status codes).
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from dialback.metrics.names import PullErrorKind
from dialback.queue.delivery import NAK, DeliveryInfo
from dialback.queue.hand_back import HandBack, HandBacks
from dialback.queue.lane_repair import LaneRepair, Restore
from dialback.queue.lanes import lane_order
from dialback.queue.pull_inbox import PullInbox
from dialback.queue.pull_settings import PullEvents, PullSettings
from dialback.queue.pulls import GIVEN_UP, NO_MESSAGES, Linger, Probe, PullFailedError

logger = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_PROBE_TIMEOUT: Final = 2.0  # seconds; doubled while nothing is heard at all
_MAX_DOUBLINGS: Final = 4
_MAX_BACKOFF: Final = 1.0
_FLUSH_TIMEOUT: Final = 2  # at the end; nats-py's 10 would use up a shutdown budget


class Puller:
    """Pulls from the lanes of one stream until it is stopped.

    Args of the constructor:
        client: Connected client.
        stream: Stream name.
        lanes: Consumer names, most urgent first.
        room: Returns how many more messages of a lane there are slots for.
        accept: Takes a message on the event loop; False if there is no slot for it. It is
            told a monotonic time before which the message had not been asked for.
        hand_back: Gives back a message that was not accepted; a plain NAK by default.
        restore: Creates streams and consumers that are missing; called, at most every few
            seconds, when a lane's may have been deleted.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        lanes: Sequence[str],
        *,
        room: Callable[[str], int],
        accept: Callable[[Msg, DeliveryInfo, float], bool],
        hand_back: HandBack | None = None,
        settings: PullSettings | None = None,
        events: PullEvents | None = None,
        restore: Restore | None = None,
    ) -> None:
        self._client = client
        self._lanes = lanes
        self._room = room
        self._accept = accept
        self._settings = settings or PullSettings()
        self._events = events or PullEvents()
        self._hand_backs = HandBacks(hand_back or self._nak, self._events.handed_back)
        self._repair = LaneRepair(stream, restore)
        self._inbox = PullInbox(client, stream, on_message=self._message, on_status=self._status)
        self._kick = asyncio.Event()
        self._stopping = False
        self._reset = False
        self._stream = stream
        self._probe: Probe | None = None
        self._linger: Linger | None = None
        self._passes = 0
        self._failures = 0
        self._unheard = 0

    # --- told from outside ------------------------------------------------------------

    def slots_changed(self) -> None:
        """A slot became free, or was taken by something else."""
        self._kick.set()

    def reset(self) -> None:
        """The connection was re-established: the server has forgotten our pulls."""
        self._events.failed(PullErrorKind.RECONNECTED)
        self._failures = 0
        self.start_over()

    def start_over(self) -> None:
        """Forget the pulls under way, and ask anew."""
        self._reset = True
        self._wake()

    def stop(self) -> None:
        """Pull nothing more; :meth:`run` returns soon."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        if self._probe is not None:
            self._probe.give_up()
        self._kick.set()

    @property
    def heard(self) -> float:
        """Monotonic time of the server's last sign of life, in seconds; see PullInbox."""
        return self._inbox.heard

    @property
    def has_room(self) -> bool:
        """Whether there is a slot for any lane: then a pull should be under way."""
        return bool(self._open_lanes())

    # --- the loop ---------------------------------------------------------------------

    async def run(self) -> None:
        """Pull until stopped. Messages that arrive late are handed back."""
        try:
            while not self._stopping:
                await self._turn()
        finally:
            self._stopping = True
            await self._inbox.drop()
            with suppress(nats.errors.Error, TimeoutError, OSError):
                await self._client.flush(_FLUSH_TIMEOUT)  # what was under way has arrived
            await self._inbox.close()
            await self._repair.close()
            await self._hand_backs.close()

    async def _turn(self) -> None:
        self._kick.clear()
        if self._reset:
            self._reset = False
            await self._inbox.drop()
        if not self._client.is_connected or not self.has_room:
            await self._sleep(self._settings.heartbeat)
            return
        try:
            await self._inbox.open()
            taken = await self._probe_lanes()
            if taken == 0 and not self._told():
                await self._wait_for_message()
            self._failures = 0
        except PullFailedError as error:
            await self._back_off(error.reason)
        except (nats.errors.Error, OSError) as error:
            self._events.failed(PullErrorKind.STATUS)
            await self._back_off(str(error))

    def _told(self) -> bool:
        return self._stopping or self._reset

    async def _probe_lanes(self) -> int:
        """Take what there is; only then raise what went wrong with a lane.

        Raises:
            PullFailedError: If a lane failed and the others had nothing.
        """
        self._passes += 1
        taken, failure = 0, None
        # As it was at the beginning: a slot freed meanwhile is for the most urgent lane.
        room = {lane: min(self._room(lane), self._settings.max_batch) for lane in self._lanes}
        for lane in lane_order(self._lanes, self._passes):
            wanted = min(room[lane] - taken, self._room(lane))
            if self._told() or wanted <= 0:
                continue
            try:
                taken += await self._probe_lane(lane, wanted)
            except PullFailedError as error:
                self._events.failed(error.kind)
                self._repair.status_seen(error.reason, lane)
                failure = failure or error
        if failure is not None and taken == 0:
            raise failure
        return taken

    async def _probe_lane(self, lane: str, wanted: int) -> int:
        reply = self._inbox.new_reply()
        probe = self._probe = Probe(lane, wanted, reply)
        before = self.heard
        try:
            await self._inbox.pull(lane, reply, {"batch": wanted, "no_wait": True})
            async with asyncio.timeout(_PROBE_TIMEOUT * 2**self._unheard):
                status = await probe.done
        except TimeoutError as error:
            # A server that is only slow is heard, at the latest when it is given more time.
            quiet = self.heard == before
            self._unheard = min(self._unheard + 1, _MAX_DOUBLINGS) if quiet else 0
            raise PullFailedError(PullErrorKind.MISSED_HEARTBEATS, "no answer to a pull") from error
        finally:
            self._probe = None
        if status == GIVEN_UP:
            return probe.received
        self._unheard = 0
        if status and status not in NO_MESSAGES:
            raise PullFailedError(PullErrorKind.STATUS, status)
        self._events.pulled()
        return probe.received

    async def _wait_for_message(self) -> None:
        """Linger on all lanes until a message comes, a slot changes or the pulls expire."""
        settings, loop = self._settings, asyncio.get_running_loop()
        body = {
            "batch": 1,
            "expires": round(settings.expires * _NS),
            "idle_heartbeat": round(settings.heartbeat * _NS),
        }
        pulls = {self._inbox.new_reply(): lane for lane in self._open_lanes()}
        linger = self._linger = Linger(pulls, loop.time())
        end = loop.time() + settings.expires
        try:
            for reply, lane in pulls.items():
                await self._inbox.pull(lane, reply, body)
            while not self._is_over(linger) and loop.time() < end:
                await self._sleep(settings.heartbeat / 2)
        finally:
            self._linger = None
            await self._inbox.drop()
        if linger.failed is not None:
            lane, status = linger.failed
            self._events.failed(PullErrorKind.STATUS)
            self._repair.status_seen(status, lane)
            raise PullFailedError(PullErrorKind.STATUS, status)
        if self._is_silent(linger):
            self._events.failed(PullErrorKind.MISSED_HEARTBEATS)
            raise PullFailedError(PullErrorKind.MISSED_HEARTBEATS, "heartbeats are missing")

    def _open_lanes(self) -> list[str]:
        return [lane for lane in self._lanes if self._room(lane) > 0]

    def _is_over(self, linger: Linger) -> bool:
        return bool(
            linger.arrived
            or linger.failed
            or self._told()
            or self._is_silent(linger)
            or linger.lanes != frozenset(self._open_lanes())
        )

    def _is_silent(self, linger: Linger) -> bool:
        silence = linger.silence(asyncio.get_running_loop().time())
        return silence > 2 * self._settings.heartbeat + 0.5

    async def _sleep(self, seconds: float) -> None:
        """Wait for a kick, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._kick.wait()
        self._kick.clear()

    async def _back_off(self, reason: str) -> None:
        self._failures = min(self._failures + 1, 6)
        delay = min(_MAX_BACKOFF, 0.05 * 2.0**self._failures) * random.uniform(0.5, 1.0)  # noqa: S311
        logger.log(
            logging.WARNING if self._failures == 1 else logging.DEBUG,
            "pull failed, starting over",
            extra={"reason": reason, "stream": self._stream, "delay": round(delay, 3)},
        )
        await self._inbox.drop()
        clock = asyncio.get_running_loop().time
        end = clock() + delay
        while not self._told() and (left := end - clock()) > 0:
            await self._sleep(left)

    # --- what arrives -----------------------------------------------------------------

    def _message(self, message: Msg, info: DeliveryInfo, asked: float) -> None:
        if self._stopping or not self._accept(message, info, asked):
            self._hand_backs.start(message, info)
        if self._linger is not None:
            self._linger.message()
        if self._probe is not None:
            self._probe.message(info.consumer)
        self._kick.set()

    def _status(self, reply: str, status: str) -> None:
        if self._probe is not None:
            self._probe.status(reply, status)
        if self._linger is not None:
            if self._linger.status(reply, status, asyncio.get_running_loop().time()):
                self._events.pulled()
            if self._linger.failed is not None:
                self._kick.set()

    async def _nak(self, message: Msg, info: DeliveryInfo) -> None:
        del info
        await self._client.publish(message.reply, NAK)
