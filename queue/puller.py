"""The pull loop: asks each lane for as many messages as there are slots for it, no more.

Two alternating steps. *Probe*: a ``no_wait`` pull on each lane, most urgent first, until the
slots are filled; the server answers with messages, and with 404 when it has fewer. A lane that
was empty a moment ago is passed over. *Stand by*: when all lanes are empty, a pull stands on
each and is topped up as messages come, for as long as there are slots for what comes. Then the
pulls are cancelled by dropping the inbox. In a cluster that would lose messages: there they stand
on until they end by themselves, soon, and what they bring to a full worker is handed back. Any
doubt (a reconnect, a lane that is not heard, a status that is none of the ordinary ones) starts
over. A lane that fails keeps no other lane waiting: the pass goes on, then the loop backs off.

Source: jetstream sections 1.2 to 1.5 and 2.5; ADR-13 (pull requests and status codes).
"""

import asyncio
import logging
import random
import time
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
from dialback.queue.lanes import EmptyLanes, lane_order
from dialback.queue.probing import Probing
from dialback.queue.pull_inbox import PullInbox
from dialback.queue.pull_settings import PullEvents, PullSettings
from dialback.queue.pulls import GIVEN_UP, NO_MESSAGES, PullFailedError
from dialback.queue.standing import Standing

logger = logging.getLogger(__name__)

_SOON: Final = 0.02  # seconds; nothing has to be asked for until then
_ROUTE: Final = 0.3  # seconds that a message may take from another server of the cluster
_MAX_BACKOFF: Final = 1.0
_FLUSH_TIMEOUT: Final = 2  # nats-py's 10 would use up a shutdown budget


class Puller:
    """Pulls from the lanes of one stream until it is stopped.

    Args of the constructor:
        client: Connected client.
        stream: Stream name.
        lanes: Consumer names, most urgent first.
        room: Returns how many more messages of a lane there are slots for.
        accept: Takes a message on the event loop; False if there is no slot for it. It is
            told a monotonic time before which the message had not been asked for.
        in_hand: Returns how many messages are being worked on.
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
        in_hand: Callable[[], int] = lambda: 0,
        hand_back: HandBack | None = None,
        settings: PullSettings | None = None,
        events: PullEvents | None = None,
        restore: Restore | None = None,
    ) -> None:
        self._client = client
        self._lanes = lanes
        self._room = room
        self._accept = accept
        self._in_hand = in_hand
        self._settings = settings or PullSettings()
        self._events = events or PullEvents()
        self._hand_backs = HandBacks(hand_back or self._nak, self._events.handed_back)
        self._repair = LaneRepair(stream, restore)
        self._inbox = PullInbox(client, stream, on_message=self._message, on_status=self._status)
        self._stream = stream
        self._kick = asyncio.Event()
        self._stopping = self._reset = False
        self._probing = Probing(self._inbox)
        self._empty = EmptyLanes()
        self._standing: Standing | None = None
        self._stands_by = False
        self._timer: asyncio.TimerHandle | None = None  # of the next kick that needs no event
        self._due = 0.0  # when it comes; the event loop's time
        self._passes = self._failures = 0

    # --- told from outside ------------------------------------------------------------

    def slots_changed(self) -> None:
        """A slot became free, or was taken by something else."""
        self._attend()

    def _attend(self) -> None:
        """Look after the pulls: now, or soon if what stands will do for a while.

        Whoever is served at this moment should not wait for it. So even now is a turn of the loop
        later: by then a message that has just come is with its engine, if no dial was needed.
        """
        if not self._at_ease():
            asyncio.get_running_loop().call_soon(self._kick.set)
        else:
            self._kick_within(_SOON)

    def _at_ease(self) -> bool:
        standing = self._standing
        if not self._stands_by or standing is None or not standing.stocked:
            return False
        return standing.asked <= min(map(self._room, self._lanes))

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
        self._probing.give_up()
        self._kick.set()

    @property
    def heard(self) -> float:
        """Monotonic time of the server's last sign of life, in seconds; see PullInbox."""
        return self._inbox.heard

    @property
    def lingers(self) -> float:
        """Seconds after a stop for which pulls may stand all the same; see PullInbox.cancels."""
        return 0.0 if self._inbox.cancels else self._settings.brief + _ROUTE

    @property
    def has_room(self) -> bool:
        """Whether there is a slot for any lane: then a pull should be under way."""
        return any(self._room(lane) > 0 for lane in self._lanes)

    # --- the loop ---------------------------------------------------------------------

    async def run(self) -> None:
        """Pull until stopped. Messages that arrive late are handed back."""
        try:
            while not self._stopping:
                await self._turn()
            await self._let_pulls_end()
        finally:
            self._stopping = True
            if self._timer is not None:
                self._timer.cancel()
            await self._inbox.drop()
            with suppress(nats.errors.Error, TimeoutError, OSError):
                await self._client.flush(_FLUSH_TIMEOUT)  # what was under way has arrived
            await self._inbox.close()
            await self._repair.close()
            await self._hand_backs.close()

    async def _let_pulls_end(self) -> None:
        """Wait until nothing is delivered any more, where pulls cannot be cancelled."""
        begun = time.monotonic()
        while self._client.is_connected:
            stands = self._standing is not None and self._standing.stands
            # If none stands, what a probe has brought may be under way.
            limit = self.lingers if stands else min(self.lingers, _ROUTE)
            left = begun + limit - time.monotonic()
            if left <= 0:
                return
            await self._sleep(left)

    async def _turn(self) -> None:
        self._kick.clear()
        if self._reset:
            self._reset = False
            await self._forget()
        if not self._client.is_connected or not self.has_room:
            await self._sleep(self._settings.heartbeat)
            return
        try:
            standing = await self._begin()
            if not await self._probe(standing) and not self._told():
                await self._stand_by(standing)
            self._failures = 0
        except PullFailedError as error:
            await self._back_off(error.reason)
        except (nats.errors.Error, OSError) as error:
            self._events.failed(PullErrorKind.STATUS)
            await self._back_off(str(error))

    async def _begin(self) -> Standing:
        """Return what stands, if that can be relied on."""
        if self._standing is not None:
            self._check(self._standing)
            if self._standing.lost:
                await self._forget()
        await self._inbox.open()
        if self._standing is None:
            self._standing = Standing({lane: self._inbox.new_reply() for lane in self._lanes})
        return self._standing

    async def _forget(self) -> None:
        """Cancel all pulls, or give them up for lost."""
        self._standing = None
        await self._inbox.drop()

    def _told(self) -> bool:
        return self._stopping or self._reset

    async def _probe(self, standing: Standing) -> int:
        """Take what there is, and return how much; ask lanes that were empty just now last."""
        self._passes += 1
        now, empty = time.monotonic(), standing.empty
        order = [lane for lane in lane_order(self._lanes, self._passes) if lane not in empty]
        first = [lane for lane in order if not self._empty.just_now(lane, now)]
        taken = await self._probe_lanes(first, standing)
        if taken or min(map(self._room, self._lanes)) >= len(self._lanes):
            return taken
        # A message of each lane may come while we stand by, and there are not slots for all.
        return await self._probe_lanes([lane for lane in order if lane not in first], standing)

    async def _probe_lanes(self, lanes: Sequence[str], standing: Standing) -> int:
        """Ask lanes in this order; only then raise what went wrong with one.

        Raises:
            PullFailedError: If a lane failed and the others had nothing.
        """
        taken, failure = 0, None
        # As it was at the beginning: a slot freed meanwhile is for the most urgent lane.
        room = {lane: min(self._room(lane), self._settings.max_batch) for lane in lanes}
        for lane in lanes:
            wanted = min(room[lane] - taken, self._room(lane))
            if self._told() or wanted <= 0:
                continue
            try:
                taken += await self._probe_lane(lane, wanted, standing)
            except PullFailedError as error:
                self._events.failed(error.kind)
                self._repair.status_seen(error.reason, lane)
                failure = failure or error
        if failure is not None and taken == 0:
            raise failure
        return taken

    async def _probe_lane(self, lane: str, wanted: int, standing: Standing) -> int:
        probe = await self._probing.ask(lane, wanted)
        status = probe.done.result()
        if status in NO_MESSAGES:
            self._empty.found(lane, time.monotonic(), empty=True)
            standing.found_empty(lane)
        if status != GIVEN_UP:
            self._events.pulled()
        return probe.received

    async def _stand_by(self, standing: Standing) -> None:
        """Keep a pull on all lanes, until they bring too much, or something else changes."""
        self._stands_by = True
        try:
            await self._keep_topped_up(standing)
        finally:
            self._stands_by = False
        if self._told() or self._in_doubt(standing):
            return
        if self._inbox.cancels:
            for lane in standing.empty:
                self._empty.found(lane, time.monotonic(), empty=True)
            await self._forget()
        if standing.under_way:
            await self._client.flush(_FLUSH_TIMEOUT)  # they have arrived, so slots are counted

    async def _keep_topped_up(self, standing: Standing) -> None:
        settings = self._settings
        while not self._told() and not self._in_doubt(standing):
            rooms = {lane: self._room(lane) for lane in self._lanes}
            cancels = self._inbox.cancels
            if standing.in_the_way(rooms) if cancels else not any(rooms.values()):
                return
            now, in_hand = time.monotonic(), self._in_hand()
            more = standing.top_up(rooms, settings.max_batch, now, in_hand=in_hand)
            if more is None:
                return
            for lane, wanted in more.items():
                body = settings.standing(wanted, brief=wanted > 1 or not cancels)
                await self._inbox.pull(lane, standing.reply(lane), body)
            await self._sleep(settings.heartbeat / 2)

    def _in_doubt(self, standing: Standing) -> bool:
        return bool(standing.lost or standing.failed or self._is_silent(standing))

    def _check(self, standing: Standing) -> None:
        """Raise what went wrong with the pulls that stand.

        Raises:
            PullFailedError: For a strange answer, or none.
        """
        if standing.failed is not None:
            lane, status = standing.failed
            self._events.failed(PullErrorKind.STATUS)
            self._repair.status_seen(status, lane)
            raise PullFailedError(PullErrorKind.STATUS, status)
        if self._is_silent(standing):
            self._events.failed(PullErrorKind.MISSED_HEARTBEATS)
            raise PullFailedError(PullErrorKind.MISSED_HEARTBEATS, "heartbeats are missing")

    def _is_silent(self, standing: Standing) -> bool:
        settings = self._settings
        return (
            standing.silence(time.monotonic()) > max(2 * settings.heartbeat, settings.brief) + 0.5
        )

    async def _sleep(self, seconds: float) -> None:
        """Wait for a kick, at most so long.

        It may end early and for nothing: a timer that was set before still kicks.
        """
        self._kick_within(seconds)
        await self._kick.wait()
        self._kick.clear()

    def _kick_within(self, seconds: float) -> None:
        """Set the timer, unless it is set for as soon.

        It goes on when a kick comes before it: to cancel and set one costs 2 us with every request.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_at(due, self._timed_kick)

    def _timed_kick(self) -> None:
        self._timer = None
        self._kick.set()

    async def _back_off(self, reason: str) -> None:
        self._failures = min(self._failures + 1, 6)
        delay = min(_MAX_BACKOFF, 0.05 * 2.0**self._failures) * random.uniform(0.5, 1.0)  # noqa: S311
        logger.log(
            logging.WARNING if self._failures == 1 else logging.DEBUG,
            "pull failed, starting over",
            extra={"reason": reason, "stream": self._stream, "delay": round(delay, 3)},
        )
        await self._forget()
        end = time.monotonic() + delay
        while not self._told() and (left := end - time.monotonic()) > 0:
            await self._sleep(left)

    # --- what arrives -----------------------------------------------------------------

    def _message(self, message: Msg, info: DeliveryInfo, asked: float) -> None:
        if self._stopping or not self._accept(message, info, asked):
            self._hand_backs.start(message, info)
        now, lane = time.monotonic(), info.consumer
        self._empty.found(lane, now, empty=info.pending == 0)
        if self._standing is not None:
            self._standing.message(lane, info.pending, now)
        self._probing.message(lane)
        self._attend()

    def _status(self, reply: str, status: str, left: int | None) -> None:
        self._probing.status(reply, status)
        if self._standing is not None:
            now = time.monotonic()
            if self._standing.status(reply, status, left, now):
                self._events.pulled()
                self._attend()

    async def _nak(self, message: Msg, _: DeliveryInfo) -> None:
        await self._client.publish(message.reply, NAK)
