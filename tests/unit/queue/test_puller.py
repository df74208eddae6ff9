import asyncio
import itertools
import logging
from dataclasses import dataclass, field

import nats.errors
import pytest
from nats.aio.msg import Msg
from typing_extensions import override

from dialback.metrics.names import PullErrorKind
from dialback.queue.delivery import DeliveryInfo
from dialback.queue.pull_settings import PullEvents, PullSettings
from support.fake_jetstream import FakeJetStream, Pull, ack_subject, message
from support.queue_rig import LANES, LIMIT, Taken, pulling

QUICK = PullSettings(heartbeat=0.01, brief=0.01)
CLUSTERED = PullSettings(brief=0.05)  # its pulls are waited for at a stop


@dataclass
class Seen:
    """Pull events, to be awaited."""

    failures: list[PullErrorKind] = field(default_factory=list[PullErrorKind])
    pulled: int = 0
    handed_back: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def events(self) -> PullEvents:
        return PullEvents(pulled=self._pulled, failed=self._failed, handed_back=self._handed_back)

    def _pulled(self) -> None:
        self.pulled += 1
        self.changed.set()

    def _failed(self, kind: PullErrorKind) -> None:
        self.failures.append(kind)
        self.changed.set()

    def _handed_back(self) -> None:
        self.handed_back += 1
        self.changed.set()

    async def until_failures(self, count: int) -> None:
        async with asyncio.timeout(LIMIT):
            while len(self.failures) < count:
                self.changed.clear()
                await self.changed.wait()

    async def until_handed_back(self, count: int) -> None:
        async with asyncio.timeout(LIMIT):
            while self.handed_back < count:
                self.changed.clear()
                await self.changed.wait()


def on_linger(server: FakeJetStream, count: int = 3) -> asyncio.Event:
    """Set once so many pulls linger, by default one on each lane."""
    waiting = asyncio.Event()
    lingering: list[str] = []

    def note(pull: Pull) -> None:
        if not pull.no_wait:
            lingering.append(pull.lane)
        if len(lingering) == count:
            waiting.set()

    server.on_pull = note
    return waiting


async def test_a_pull_never_asks_for_more_than_the_free_slots() -> None:
    server, taken = FakeJetStream(), Taken(slots=5)
    asked: list[tuple[int, int]] = []
    server.on_pull = lambda pull: asked.append((pull.batch, taken.free()))
    for sequence in range(1, 41):
        server.put("normal", sequence)
    async with pulling(server.client, taken) as puller:
        for count in range(5, 41):
            await taken.until(count)
            taken.busy -= 1
            puller.slots_changed()
        await taken.until(40)
    assert (len(taken.messages), taken.refused) == (40, 0)
    assert all(batch <= free for batch, free in asked)


async def test_a_pull_asks_for_at_most_max_batch() -> None:
    server, taken = FakeJetStream(), Taken(slots=100)
    for sequence in range(1, 31):
        server.put("high", sequence)
    async with pulling(server.client, taken, settings=PullSettings(max_batch=8)):
        await taken.until(30)
    assert max(pull.batch for pull in server.pulls) == 8


async def test_lanes_are_served_in_strict_order() -> None:
    server, taken = FakeJetStream(), Taken(slots=1)
    for lane in ("low", "normal", "high"):
        for sequence in range(1, 4):
            server.put(lane, sequence)
    async with pulling(server.client, taken) as puller:
        for count in range(1, 10):
            await taken.until(count)
            taken.busy -= 1
            puller.slots_changed()
    lanes = [info.consumer for _, info in taken.messages]
    assert lanes == ["high"] * 3 + ["normal"] * 3 + ["low"] * 3


@pytest.mark.parametrize("lane", ["high", "normal", "low"])
async def test_a_message_that_comes_while_it_waits_is_taken(lane: str) -> None:
    server, taken = FakeJetStream(), Taken(slots=2)
    waiting = on_linger(server)
    async with pulling(server.client, taken):
        await waiting.wait()
        server.put(lane, 1)
        await taken.until(1)
    assert taken.tokens == ["r1"]


async def test_an_idle_worker_keeps_its_pulls_and_tops_them_up() -> None:
    server, taken = FakeJetStream(), Taken(slots=24)
    waiting = on_linger(server)
    async with pulling(server.client, taken) as puller:
        await waiting.wait()
        before = len(server.pulls)
        assert [pull.batch for pull in server.pulls[-3:]] == [1, 1, 1]
        for sequence in range(1, 21):
            server.put("normal", sequence)
            await taken.until(sequence)
            taken.busy -= 1
            puller.slots_changed()
    more = server.pulls[before:]
    assert {(pull.lane, pull.no_wait) for pull in more} == {("normal", False)}
    assert {pull.batch for pull in more} == {1}
    assert len(more) <= 20


async def test_with_one_slot_each_lane_is_asked_for_one_message() -> None:
    server = FakeJetStream()
    waiting = on_linger(server)
    async with pulling(server.client, Taken(slots=1)):
        await waiting.wait()
    assert [pull.batch for pull in server.pulls if not pull.no_wait] == [1, 1, 1]


async def test_a_worker_whose_slots_are_taken_leaves_no_pull_behind() -> None:
    server, taken = FakeJetStream(), Taken(slots=2)
    waiting = on_linger(server)
    async with pulling(server.client, taken) as puller:
        await waiting.wait()
        server.put("normal", 1)
        await taken.until(1)
        server.put("normal", 2)
        await taken.until(2)
        for _ in range(5):
            await asyncio.sleep(0)
        for sequence, lane in enumerate(LANES, start=3):
            server.put(lane, sequence)
        assert [len(server.waiting[lane]) for lane in LANES] == [1, 1, 1]
        for count in range(3, 6):
            taken.busy -= 1
            puller.slots_changed()
            await taken.until(count)
    assert taken.refused == 0


async def test_in_a_cluster_pulls_end_by_themselves_and_what_they_bring_too_many_is_handed_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An UNSUB would lose what another server sends at that moment, until its lease ends."""
    server, taken, seen = FakeJetStream(clustered=True), Taken(slots=1), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, settings=CLUSTERED, events=seen.events) as puller:
        await waiting.wait()
        stood = len(server.pulls)
        assert {pull.expires for pull in server.pulls[-3:]} == {CLUSTERED.brief}
        server.put("normal", 1)
        await taken.until(1)
        for sequence, lane in enumerate(("high", "low"), start=2):
            server.put(lane, sequence)
            await seen.until_handed_back(sequence - 1)
        assert len(server.pulls) == stood  # a full worker asks for nothing
        server.put("high", 4)
        assert [len(server.waiting.get(lane, [])) for lane in LANES] == [1, 0, 0]
        taken.busy -= 1
        puller.slots_changed()
        await taken.until(2)
    assert taken.tokens == ["r1", "r4"]
    assert len(server.listening) == 0
    assert caplog.records == []


async def test_in_a_cluster_a_lane_whose_pull_still_stands_is_not_asked_again() -> None:
    server, taken = FakeJetStream(clustered=True), Taken(slots=1)
    waiting = on_linger(server)
    async with pulling(server.client, taken, settings=CLUSTERED) as puller:
        await waiting.wait()
        before = len(server.pulls)
        for sequence in range(1, 6):
            server.put("normal", sequence)
            await taken.until(sequence)
            waiting = on_linger(server, 1)
            taken.busy -= 1
            puller.slots_changed()
            async with asyncio.timeout(LIMIT):
                await waiting.wait()
        assert {pull.lane for pull in server.pulls[before:]} == {"normal"}


@pytest.mark.parametrize("status", ["409", "408"])
async def test_in_a_cluster_a_pull_that_failed_on_a_full_worker_is_begun_anew(status: str) -> None:
    server, taken, seen = FakeJetStream(clustered=True), Taken(slots=1), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, settings=CLUSTERED, events=seen.events) as puller:
        await waiting.wait()
        low = server.pulls[-1]
        server.put("normal", 1)
        await taken.until(1)
        before = seen.pulled
        server.say(low, status)
        async with asyncio.timeout(LIMIT):
            while seen.pulled == before:
                seen.changed.clear()
                await seen.changed.wait()
        server.put("normal", 2)
        taken.busy -= 1
        waiting = on_linger(server)
        puller.slots_changed()
        await taken.until(2)
        taken.busy -= 1
        puller.slots_changed()
        await waiting.wait()
    new = [pull for pull in server.pulls if pull.lane == low.lane and not pull.no_wait]
    assert len({pull.reply for pull in new}) == 2
    assert seen.failures == [PullErrorKind.STATUS] * (status == "409")


async def test_in_a_cluster_a_stop_waits_for_the_pulls_and_hands_back_what_they_bring() -> None:
    server, taken, seen = FakeJetStream(clustered=True), Taken(slots=4), Seen()
    waiting = on_linger(server)
    patient = PullSettings(brief=LIMIT)
    async with pulling(server.client, taken, settings=patient, events=seen.events) as puller:
        await waiting.wait()
        stood = server.pulls[-3:]
        assert puller.lingers > LIMIT
        puller.stop()
        server.put(stood[0].lane, 1)
        await seen.until_handed_back(1)
        assert server.listening != []
        for pull in stood[1:]:
            server.expire(pull)
    assert taken.messages == []
    assert server.listening == []


async def test_in_a_cluster_a_dropped_inbox_keeps_what_its_pulls_bring() -> None:
    server, taken = FakeJetStream(clustered=True), Taken(slots=4)
    waiting = on_linger(server)
    async with pulling(server.client, taken, settings=CLUSTERED) as puller:
        await waiting.wait()
        old = server.pulls[-1]
        waiting = on_linger(server)
        puller.start_over()
        await waiting.wait()
        server.put(old.lane, 1)  # the server gives it to the pull that stood first
        await taken.until(1)
    assert taken.tokens == ["r1"]


async def test_on_a_single_server_a_stop_waits_for_no_pull() -> None:
    server = FakeJetStream()
    waiting = on_linger(server)
    async with pulling(server.client, Taken(slots=4)) as puller:
        await waiting.wait()
        assert puller.lingers == 0.0


async def test_what_a_busy_worker_asks_for_beside_the_first_message_is_not_asked_for_long() -> None:
    """Else a worker that has become idle, and freezes, would keep all that from the others."""
    server, taken = FakeJetStream(), Taken(slots=64)
    taken.busy = 40
    waiting = on_linger(server)
    async with pulling(server.client, taken, in_hand=lambda: taken.busy):
        await waiting.wait()
        assert {pull.expires for pull in server.pulls[-3:]} == {PullSettings().expires}
        more, again = asyncio.Event(), asyncio.Event()
        server.on_pull = lambda _: (again if more.is_set() else more).set()
        server.put("normal", 1)
        await taken.until(1)
        async with asyncio.timeout(LIMIT):
            await more.wait()
        pull = server.pulls[-1]
        assert (pull.lane, pull.batch > 1, pull.expires) == ("normal", True, PullSettings().brief)
        server.expire(pull)
        async with asyncio.timeout(LIMIT):
            await again.wait()
        pull = server.pulls[-1]
        assert (pull.lane, pull.batch, pull.expires) == ("normal", 1, PullSettings().expires)


async def test_a_burst_that_exceeds_the_slots_is_taken_as_slots_become_free() -> None:
    server, taken = FakeJetStream(), Taken(slots=12)
    waiting = on_linger(server)
    async with pulling(server.client, taken) as puller:
        await waiting.wait()
        for sequence in range(1, 61):
            server.put(LANES[sequence % 3], sequence)
        for count in range(12, 61):
            await taken.until(count)
            taken.busy -= 1
            puller.slots_changed()
    assert (len(taken.messages), taken.refused) == (60, 0)


async def test_a_message_is_served_before_its_pull_is_replaced() -> None:
    server, replaced = FakeJetStream(), asyncio.Event()
    waiting, steps = on_linger(server), list[str]()

    async def engine() -> None:
        steps.append("engine")

    async def delivery() -> None:
        serving.append(asyncio.create_task(engine()))

    def pulled(_: Pull) -> None:
        steps.append("pull")
        replaced.set()

    class Serving(Taken):
        @override
        def accept(self, message: Msg, info: DeliveryInfo, asked: float) -> bool:
            serving.append(asyncio.create_task(delivery()))
            return super().accept(message, info, asked)

    serving = list[asyncio.Task[None]]()
    taken = Serving(slots=12)
    async with pulling(server.client, taken):
        await waiting.wait()
        server.on_pull = pulled
        server.put("normal", 1)
        async with asyncio.timeout(LIMIT):
            await replaced.wait()
        await asyncio.gather(*serving)
    assert steps == ["engine", "pull"]


async def test_slots_are_counted_anew_when_what_was_under_way_has_arrived() -> None:
    server, taken, probed = FakeJetStream(), Taken(slots=12), asyncio.Event()
    waiting = on_linger(server)

    def come(lane: str, sequence: int, *, behind: int) -> None:
        reply = f"{ack_subject(lane, sequence).rpartition('.')[0]}.{behind}"
        pull = next(pull for pull in reversed(server.pulls) if pull.lane == lane)
        server.deliver(pull.reply, message(reply=reply, headers={}))

    async with pulling(server.client, taken):
        await waiting.wait()
        topped_up = asyncio.Event()
        server.on_pull = lambda pull: topped_up.set()
        before = server.flush_timeout
        come("normal", 1, behind=50)  # so more is asked for, up to the slots
        async with asyncio.timeout(LIMIT):
            await topped_up.wait()
        server.on_pull = lambda pull: probed.set() if pull.no_wait else None
        come("low", 2, behind=1)  # and the other lanes' pulls hold them all
        await taken.until(2)
        async with asyncio.timeout(LIMIT):
            await probed.wait()
        assert (before, server.flush_timeout) == (0, 2)


async def test_a_lane_that_was_empty_just_now_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialback.queue.lanes.EMPTY_FOR", 3600.0)
    server, taken = FakeJetStream(), Taken(slots=1)
    for sequence in range(1, 6):
        server.put("normal", sequence)
    async with pulling(server.client, taken) as puller:
        for count in range(1, 6):
            await taken.until(count)
            taken.busy -= 1
            puller.slots_changed()
        lanes = [pull.lane for pull in server.pulls if pull.no_wait]
    assert lanes == ["high"] + ["normal"] * 5


async def test_a_message_too_many_is_handed_back_and_counted() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, events=seen.events):
        await waiting.wait()
        server.put("high", 1)
        server.put("low", 2)
        await taken.until(1)
        await seen.until_handed_back(1)
    assert [payload for _, payload in server.published] == [b"-NAK"]
    assert taken.refused == 1


async def test_a_message_that_comes_after_stop_is_handed_back() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=4), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, events=seen.events) as puller:
        await waiting.wait()
        puller.stop()
        server.put("high", 1)
        await seen.until_handed_back(1)
    assert [payload for _, payload in server.published] == [b"-NAK"]
    assert taken.messages == []


async def test_without_a_free_slot_nothing_is_asked_for() -> None:
    server, taken = FakeJetStream(), Taken(slots=1)
    server.put("normal", 1)
    server.put("normal", 2)
    asked = asyncio.Event()
    async with pulling(server.client, taken) as puller:
        await taken.until(1)
        before = len(server.pulls)
        server.on_pull = lambda _: asked.set()
        for _ in range(3):
            puller.slots_changed()
            await asyncio.sleep(0)
        assert len(server.pulls) == before
        taken.busy = 0
        puller.slots_changed()
        await taken.until(2)
    assert asked.is_set()


async def test_while_disconnected_nothing_is_asked_for() -> None:
    server, taken, seen = FakeJetStream(is_connected=False), Taken(slots=1), Seen()
    server.put("normal", 1)
    async with pulling(server.client, taken, events=seen.events) as puller:
        for _ in range(3):
            puller.slots_changed()
            await asyncio.sleep(0)
        assert server.pulls == []
        server.is_connected = True
        puller.reset()
        await taken.until(1)
    assert seen.failures == [PullErrorKind.RECONNECTED]


@pytest.mark.parametrize("status", ["409", "503", "400"])
async def test_a_strange_answer_to_a_probe_backs_off(
    status: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dialback")
    server, taken, seen = FakeJetStream(status=status), Taken(slots=1), Seen()
    async with pulling(server.client, taken, events=seen.events):
        await seen.until_failures(4 * len(LANES))
        server.status = None
        server.put("normal", 1)
        await taken.until(1)
    assert set(seen.failures) == {PullErrorKind.STATUS}
    records = [r for r in caplog.records if r.getMessage() == "pull failed, starting over"]
    assert [r.levelname for r in records[:4]] == ["WARNING", "DEBUG", "DEBUG", "DEBUG"]
    delays = [vars(r)["delay"] for r in records[:4]]
    for failures, delay in enumerate(delays, start=1):
        middle = min(1.0, 0.05 * 2**failures)
        assert 0.5 * middle <= delay + 0.001
        assert delay <= 1.5 * middle + 0.001
    assert {vars(r)["reason"] for r in records} == {status}


async def test_a_pass_over_failing_lanes_backs_off_so_nothing_spins() -> None:
    server, taken, seen = FakeJetStream(status="503"), Taken(slots=1), Seen()
    async with pulling(server.client, taken, events=seen.events):
        await seen.until_failures(2 * len(LANES))
        assert [pull.lane for pull in server.pulls] == LANES * 2


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("status", ["409", "503"])
async def test_a_failing_lane_keeps_no_other_lane_waiting(lane: str, status: str) -> None:
    server, taken, seen = FakeJetStream(lane_status={lane: status}), Taken(slots=3), Seen()
    for sequence, other in enumerate(LANES, start=1):
        server.put(other, sequence)
    async with pulling(server.client, taken, events=seen.events):
        await taken.until(2)
        await seen.until_failures(1)
        assert {info.consumer for _, info in taken.messages} == set(LANES) - {lane}
        server.lane_status.clear()
        await taken.until(3)


@pytest.mark.parametrize("status", ["409", "503"])
async def test_a_lane_that_may_be_gone_is_restored_and_pulled_again(
    status: str, caplog: pytest.LogCaptureFixture
) -> None:
    server, taken = FakeJetStream(lane_status={"normal": status}), Taken(slots=1)
    server.put("normal", 1)

    async def restore() -> None:
        server.lane_status.clear()

    async with pulling(server.client, taken, restore=restore):
        await taken.until(1)
    (said,) = [vars(r) for r in caplog.records if r.getMessage() == "a queue cannot be pulled"]
    assert "consumer normal of stream JOBS does not take pulls" in said["reason"]
    assert "created again by this worker" in said["reason"]


async def test_a_waiting_pull_that_loses_its_consumer_has_it_restored() -> None:
    server, taken, restored = FakeJetStream(), Taken(slots=1), asyncio.Event()
    waiting = on_linger(server)

    async def restore() -> None:
        restored.set()

    async with pulling(server.client, taken, restore=restore):
        await waiting.wait()
        server.say(server.pulls[-1], "409")
        async with asyncio.timeout(LIMIT):
            await restored.wait()


async def test_the_last_flush_does_not_use_up_the_shutdown_budget() -> None:
    server = FakeJetStream()
    async with pulling(server.client, Taken(slots=1)):
        pass
    assert server.flush_timeout == 2


async def test_a_strange_answer_to_a_waiting_pull_backs_off() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, events=seen.events):
        await waiting.wait()
        server.say(server.pulls[-1], "409")
        await seen.until_failures(1)
        server.put("normal", 1)
        await taken.until(1)
    assert seen.failures == [PullErrorKind.STATUS]


@pytest.mark.parametrize("left", [1, None])
async def test_an_expired_pull_is_no_failure_and_another_takes_its_place(left: int | None) -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=4), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, events=seen.events):
        await waiting.wait()
        waiting = asyncio.Event()
        ended = server.pulls[-1]
        server.on_pull = lambda pull: waiting.set() if pull.lane == ended.lane else None
        server.say(ended, "408", left=left)
        async with asyncio.timeout(LIMIT):
            await waiting.wait()
        server.put(ended.lane, 1)
        await taken.until(1)
    assert seen.failures == []


async def test_a_heartbeat_counts_as_a_working_pull() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, events=seen.events):
        await waiting.wait()
        before = seen.pulled
        seen.changed.clear()
        server.say(server.pulls[-1], "100")
        await seen.changed.wait()
        assert seen.pulled == before + 1
    assert seen.failures == []


async def test_missing_heartbeats_start_over() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()
    async with pulling(server.client, taken, settings=QUICK, events=seen.events):
        await seen.until_failures(1)
        server.put("normal", 1)
        await taken.until(1)
    assert seen.failures == [PullErrorKind.MISSED_HEARTBEATS]


async def test_an_unanswered_probe_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialback.queue.probing._PROBE_TIMEOUT", 0.01)
    server, taken, seen = FakeJetStream(status=""), Taken(slots=1), Seen()
    async with pulling(server.client, taken, events=seen.events):
        await seen.until_failures(1)
        server.status = None
        server.put("normal", 1)
        await taken.until(1)
    assert set(seen.failures) == {PullErrorKind.MISSED_HEARTBEATS}


async def test_an_error_of_the_client_starts_over() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()

    def fail(_: Pull) -> None:
        server.on_pull = lambda _: None
        raise nats.errors.OutboundBufferLimitError

    server.on_pull = fail
    server.put("normal", 1)
    async with pulling(server.client, taken, events=seen.events):
        await taken.until(1)
    assert seen.failures == [PullErrorKind.STATUS]


async def test_a_status_of_a_dropped_inbox_is_ignored() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()
    waiting = on_linger(server)
    async with pulling(server.client, taken, events=seen.events) as puller:
        await waiting.wait()
        old = server.pulls[-1]
        waiting = on_linger(server)
        puller.reset()
        await waiting.wait()
        server.say(old, "409")
        server.deliver(server.pulls[-1].reply, message("_INBOX.elsewhere", headers=None))
        server.put("normal", 1)
        await taken.until(1)
    assert seen.failures == [PullErrorKind.RECONNECTED]


async def test_every_eighth_pass_asks_the_least_urgent_lane_first() -> None:
    server, taken = FakeJetStream(), Taken(slots=1)
    for sequence in range(1, 21):
        server.put("high", sequence)
    server.put("low", 100)
    async with pulling(server.client, taken) as puller:
        for count in range(1, 17):
            await taken.until(count)
            taken.busy -= 1
            puller.slots_changed()
    lanes = [info.consumer for _, info in taken.messages[:16]]
    assert lanes == ["high"] * 7 + ["low"] + ["high"] * 8


async def test_a_slot_freed_during_a_pass_is_not_for_the_lanes_below() -> None:
    server, taken = FakeJetStream(), Taken(slots=1)

    def accept_and_free(pull: Pull) -> None:
        if pull.lane == "high":
            taken.slots += 1  # as if a request had ended meanwhile

    server.on_pull = accept_and_free
    for sequence in range(1, 8):
        server.put("high", sequence)
    server.put("low", 100)
    async with pulling(server.client, taken):
        await taken.until(7)
    assert {info.consumer for _, info in taken.messages[:7]} == {"high"}


async def test_a_lane_without_room_is_not_asked() -> None:
    server, taken = FakeJetStream(), Taken(slots=2)
    taken.only = {"high"}
    lingering = asyncio.Event()

    def note(pull: Pull) -> None:
        if not pull.no_wait:
            lingering.set()

    server.on_pull = note
    server.put("low", 1)
    async with pulling(server.client, taken) as puller:
        await lingering.wait()
        assert {pull.lane for pull in server.pulls} == {"high"}
        taken.only = None
        puller.slots_changed()
        await taken.until(1)
    assert taken.tokens == ["r1"]


async def test_one_lanes_heartbeats_do_not_hide_that_another_is_silent() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()

    def keep_high_alive(pull: Pull) -> None:
        if pull.lane == "high" and not pull.no_wait and not seen.failures:
            loop = asyncio.get_running_loop()
            for tick in range(100):
                loop.call_later(tick * 0.01, server.say, pull, "100")

    server.on_pull = keep_high_alive
    async with pulling(server.client, taken, settings=QUICK, events=seen.events):
        await seen.until_failures(1)
    assert seen.failures[0] == PullErrorKind.MISSED_HEARTBEATS


async def test_a_message_that_was_not_accepted_goes_to_the_given_hand_back() -> None:
    server, taken, seen = FakeJetStream(), Taken(slots=1), Seen()
    waiting, given = on_linger(server), list[int]()

    async def hand_back(_: Msg, info: DeliveryInfo) -> None:
        given.append(info.sequence)

    async with pulling(server.client, taken, events=seen.events, hand_back=hand_back):
        await waiting.wait()
        server.put("high", 1)
        server.put("low", 2)
        await taken.until(1)
        await seen.until_handed_back(1)
    assert (given, server.published) == ([2], [])


async def test_a_late_answer_to_a_pull_that_was_given_up_is_a_sign_of_life() -> None:
    server, taken = FakeJetStream(), Taken(slots=1)
    waiting = on_linger(server)
    async with pulling(server.client, taken) as puller:
        await waiting.wait()
        old = server.pulls[-1]
        waiting = on_linger(server)
        puller.reset()
        await waiting.wait()
        before = puller.heard
        server.say(old, "408")
        await asyncio.sleep(0)
        assert puller.heard > before


async def test_a_server_that_says_nothing_is_given_more_and_more_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialback.queue.probing._PROBE_TIMEOUT", 0.004)
    server, taken, seen = FakeJetStream(status=""), Taken(slots=1), Seen()
    asked: list[float] = []
    server.on_pull = lambda _: asked.append(asyncio.get_running_loop().time())
    async with pulling(server.client, taken, events=seen.events):
        await seen.until_failures(5)
    waits = [after - before for before, after in itertools.pairwise(asked)]
    assert waits[0] >= 0.004
    assert waits[1] >= 0.008
    assert waits[3] >= 0.032


async def test_a_told_reconnect_cuts_a_back_off_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialback.queue.puller._MAX_BACKOFF", 3600.0)

    def for_ever(low: float, high: float) -> float:
        del low, high
        return 1e6

    monkeypatch.setattr("dialback.queue.puller.random.uniform", for_ever)
    server, taken, seen = FakeJetStream(status="503"), Taken(slots=1), Seen()
    async with pulling(server.client, taken, events=seen.events) as puller:
        await seen.until_failures(len(LANES))
        server.status = None
        server.put("normal", 1)
        puller.reset()
        await taken.until(1)


async def test_a_reconnect_waits_for_no_pull_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialback.queue.probing._PROBE_TIMEOUT", 3600.0)
    server, taken = FakeJetStream(status=""), Taken(slots=1)
    asked = asyncio.Event()
    server.on_pull = lambda _: asked.set()
    async with pulling(server.client, taken) as puller:
        await asked.wait()
        server.status = None
        server.put("normal", 1)
        puller.reset()
        await taken.until(1)


async def test_a_stop_waits_for_no_answer_to_a_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialback.queue.probing._PROBE_TIMEOUT", 3600.0)
    server, asked, seen = FakeJetStream(status=""), asyncio.Event(), Seen()
    server.on_pull = lambda _: asked.set()
    async with pulling(server.client, Taken(slots=1), events=seen.events):
        await asked.wait()
    assert (len(server.pulls), seen.failures, seen.pulled) == (1, [], 0)
