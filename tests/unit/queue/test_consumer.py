import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from dialback.errors import QueueFullError, ServerUnavailableError
from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import (
    Delivery,
    DeliveryEnd,
    Ending,
    Finished,
    HandedBack,
    Outcome,
    Revocation,
    Revoked,
    Superseded,
)
from dialback.queue.api import JetStreamApi
from dialback.queue.connection import ServerAddress
from dialback.queue.consumer import Consumer, Drained
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters
from dialback.queue.delivery import Answerable, DeliveryInfo, LeaseExpiredError, Settler
from dialback.queue.epochs import Epochs
from dialback.queue.lease import Lease, LeaseKeeper
from dialback.queue.note import Note, Stored
from dialback.queue.notes import Notes
from dialback.queue.policy import RetryPolicy
from dialback.queue.publisher import Publisher
from dialback.queue.topology import Endpoint
from dialback.queue.work import Work
from support.eventually import eventually
from support.fake_jetstream import PUBLISHED_NS, FakeJetStream, ack_subject
from support.queue_rig import LANES, LIMIT

CREATED = "2026-01-02T03:04:05.000000006Z"
RECREATED = "2026-01-02T03:04:05.000000007Z"
CREATED_NS = 1_767_323_045_000_000_006
SETTLE_EVENTS = (
    "request finished",
    "delivery ended",
    "delivery ended, the request will be retried",
)


class RecordingSettler(Settler):
    """Confirms at once, or fails, and remembers."""

    def __init__(self, server: FakeJetStream) -> None:
        super().__init__(server.client)
        self.bodies: list[bytes] = []
        self.happened: list[str] = []
        self.failing = False
        self.gate: asyncio.Event | None = None
        self.replies: list[str] = []
        self.asked = 0

    @override
    async def confirm(
        self, target: Answerable, body: bytes, *, lost: Callable[[], bool] = lambda: False
    ) -> None:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise ServerUnavailableError("never confirmed")
        if lost():
            raise LeaseExpiredError("too late")
        self.replies.append(target.reply)
        self.bodies.append(body)
        self.happened.append(body[:4].decode())


class RecordingLeases(LeaseKeeper):
    """Keeps leases without a thread; a test may take one away."""

    def __init__(self) -> None:
        super().__init__(ServerAddress(), name="t", ack_wait=30.0)
        self.kept: list[Lease] = []
        self.late = False

    @override
    def came_late(self, asked: float) -> bool:
        del asked
        return self.late

    @override
    def add(self, reply: str, on_lost: Callable[[], None], *, asked: float = 0.0) -> Lease:
        lease = super().add(reply, on_lost, asked=asked)
        self.kept.append(lease)
        return lease

    def lose(self, index: int) -> None:
        self.kept[index].lost = True
        self.kept[index].on_lost()


class RecordingNotes(Notes):
    """Keeps notes in a dictionary, or cannot; remembers in which order things happened."""

    def __init__(self, server: FakeJetStream, happened: list[str]) -> None:
        super().__init__(server.client, Publisher(server.client))
        self.kept: dict[str, Note] = {}
        self.happened = happened
        self.failing = False
        self.gate: asyncio.Event | None = None

    @override
    async def read(self, key: str) -> Stored | None:
        self.happened.append("read")
        if self.failing:
            return None
        return Stored(self.kept.get(key, Note()), int(key in self.kept))

    @override
    async def write(
        self,
        key: str,
        addition: Note,
        *,
        base: Stored | None = None,
        within: float | None = None,
        lost: Callable[[], bool] = lambda: False,
    ) -> bool:
        self.happened.append("write")
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            return False
        self.kept[key] = self.kept.get(key, Note()).merged(addition)
        return True


class RecordingLetters(DeadLetters):
    """Stores letters in a list, or cannot."""

    def __init__(self, server: FakeJetStream) -> None:
        super().__init__(
            JetStreamApi(server.client), Publisher(server.client), Endpoint("a", "b", "c")
        )
        self.letters: list[DeadLetterRecord] = []
        self.failing = False

    @override
    async def write(self, record: DeadLetterRecord) -> None:
        if self.failing:
            raise QueueFullError("no room")
        self.letters.append(record)


@dataclass
class Bench:
    """A consumer between a fake server and a fake ingress."""

    server: FakeJetStream
    slots: int = 2
    handle: Callable[[Delivery], Awaitable[Ending]] = field(default_factory=lambda: until_revoked)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    leases: RecordingLeases = field(default_factory=RecordingLeases)
    deliveries: list[Delivery] = field(default_factory=list[Delivery])
    sequence: int = 0

    def __post_init__(self) -> None:
        self.settler = RecordingSettler(self.server)
        self.letters = RecordingLetters(self.server)
        self.notes = RecordingNotes(self.server, self.settler.happened)
        self.refreshed = 0
        self.created = dict.fromkeys(LANES, CREATED)
        self.consumer = Consumer(
            self.server.client,
            stream="JOBS",
            lanes=LANES,
            slots=self.slots,
            handle=self._handle,
            leases=self.leases,
            settler=self.settler,
            dead_letters=self.letters,
            notes=self.notes,
            epochs=Epochs(self.created, self._refresh),
            metrics=ServiceMetrics(
                self.registry, outcomes=Outcome, delivery_ends=DeliveryEnd, version="1", slots=2
            ),
            worker="pod-1",
            policy=RetryPolicy(max_attempts=3, retry_delay=2.0),
        )

    async def _refresh(self) -> None:
        self.refreshed += 1
        self.created["normal"] = RECREATED

    async def _handle(self, delivery: Delivery) -> Ending:
        self.deliveries.append(delivery)
        return await self.handle(delivery)

    def put(self, *, number: int = 1, headers: dict[str, str] | None = None) -> None:
        self.sequence += 1
        self.server.put("normal", self.sequence, number=number, data=b"payload", headers=headers)

    def next_key(self) -> str:
        """The key of the note on the message that is put next."""
        return f"JOBS.{self.sequence + 1}-{PUBLISHED_NS}"

    async def busy(self, count: int) -> None:
        """Wait until so many deliveries have reached the ingress and are still there."""

        async def both() -> tuple[int, int]:
            return len(self.deliveries), self.consumer.in_flight

        await eventually(both, lambda seen: seen[0] >= count and seen[1] == count)

    async def settling(self) -> None:
        """Wait until an answer is on its way."""

        async def asked() -> int:
            return self.settler.asked

        await eventually(asked, lambda count: count > 0)

    async def done(self, count: int) -> None:
        """Wait until so many deliveries have come and all have ended."""

        async def both() -> tuple[int, int]:
            return len(self.deliveries), self.consumer.in_flight

        await eventually(both, lambda seen: seen == (count, 0))

    async def one(
        self, ending: Ending, *, number: int = 1, headers: dict[str, str] | None = None
    ) -> None:
        """Let one delivery end like this."""

        async def handle(_: Delivery) -> Ending:
            return ending

        self.handle = handle
        count = len(self.deliveries) + 1
        self.put(number=number, headers=headers)
        await self.done(count)

    def counted(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        assert value is not None
        return value

    async def noted(self, note: Note) -> None:
        """Wait until this is the note on the last message."""

        async def kept() -> Note | None:
            return self.notes.kept.get(f"JOBS.{self.sequence}-{PUBLISHED_NS}")

        await eventually(kept, lambda found: found == note)

    def forget(self) -> None:
        """Keep nothing of the deliveries that have ended."""
        self.deliveries.clear()
        self.leases.kept.clear()

    def ends(self) -> dict[DeliveryEnd, float]:
        found = {e: self.counted("dialback_deliveries_total", end=e.value) for e in DeliveryEnd}
        return {end: value for end, value in found.items() if value}

    def outcomes(self) -> dict[Outcome, float]:
        found = {o: self.counted("dialback_outcomes_total", outcome=o.value) for o in Outcome}
        return {outcome: value for outcome, value in found.items() if value}


async def until_revoked(delivery: Delivery) -> Ending:
    reason = await delivery.revocation.wait()
    if reason is Revoked.LEASE_LOST:
        return Superseded(request_id="r", reason="lease lost")
    return Finished(outcome=Outcome.INTERRUPTED, request_id="r", reason="shutdown")


def finished(outcome: Outcome) -> Finished:
    return Finished(outcome=outcome, request_id="r", reason="why")


@asynccontextmanager
async def consuming(bench: Bench) -> AsyncGenerator[None]:
    running = asyncio.create_task(bench.consumer.run())
    try:
        yield
    finally:
        bench.consumer.puller.stop()
        async with asyncio.timeout(LIMIT):
            await running


@pytest.fixture
async def bench() -> AsyncGenerator[Bench]:
    bench = Bench(FakeJetStream())
    async with consuming(bench):
        yield bench


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage() in SETTLE_EVENTS]


async def test_the_ingress_sees_the_whole_delivery(bench: Bench) -> None:
    await bench.one(finished(Outcome.COMPLETED), number=2)
    seen = bench.deliveries[0]
    assert (seen.payload, seen.headers, seen.lane) == (b"payload", {}, "normal")
    assert (seen.stream, seen.sequence, seen.number) == ("JOBS", 1, 2)
    assert seen.subject == "dialback.a.b.c.jobs.normal.r1"
    assert seen.published_ns == 1_700_000_000_000_000_000


async def test_a_delivery_leaves_nothing_to_the_garbage_collector(bench: Bench) -> None:
    async def handle(delivery: Delivery) -> Ending:
        # As the ingress: what hears of the revocation refers to the delivery.
        delivery.revocation.on_revoked(lambda _: delivery.revocation.set(Revoked.SHUTDOWN))
        delivery.revocation.on_handover_offered(delivery.revocation.offer_handover)
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    for _ in range(3):  # what is made only once
        bench.put()
    await bench.done(3)
    bench.forget()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            bench.put()
        await bench.done(10)
        bench.forget()
        gc.collect()
        left: set[type] = {type(found) for found in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not {Delivery, Work, Lease, Revocation, DeliveryInfo, Finished} & left


async def test_queue_wait_is_observed_for_first_deliveries_only(bench: Bench) -> None:
    await bench.one(finished(Outcome.COMPLETED), number=1)
    await bench.one(finished(Outcome.COMPLETED), number=2)
    assert bench.counted("dialback_queue_wait_seconds_count") == 1


@pytest.mark.parametrize(
    ("ending", "number", "body", "end"),
    [
        (finished(Outcome.COMPLETED), 1, b"+ACK", DeliveryEnd.SETTLED),
        (finished(Outcome.ENGINE_FAILED), 1, b"+ACK", DeliveryEnd.SETTLED),
        (finished(Outcome.INVALID), 1, b"+TERM invalid", DeliveryEnd.SETTLED),
        (
            finished(Outcome.REQUESTER_UNREACHABLE),
            3,
            b"+TERM requester_unreachable",
            DeliveryEnd.SETTLED,
        ),
        (HandedBack(request_id="r", reason="drain"), 1, b"-NAK", DeliveryEnd.HANDED_BACK),
    ],
)
async def test_an_ending_is_answered_and_counted_once(
    bench: Bench, ending: Ending, number: int, body: bytes, end: DeliveryEnd
) -> None:
    bench.notes.kept[bench.next_key()] = Note(retried=frozenset(range(1, number)))
    await bench.one(ending, number=number)
    assert bench.settler.bodies == [body]
    assert bench.ends() == {end: 1}
    expected = {ending.outcome: 1} if isinstance(ending, Finished) else {}
    assert bench.outcomes() == expected
    assert len(bench.leases) == 0


async def test_an_unreachable_requester_is_retried_and_not_counted_as_an_outcome(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    bench.notes.kept[bench.next_key()] = Note(retried=frozenset({1}))
    await bench.one(finished(Outcome.REQUESTER_UNREACHABLE), number=2)
    (body,) = bench.settler.bodies
    assert body.startswith(b'-NAK {"delay":')
    assert 3_200_000_000 <= int(body[14:-1]) <= 4_800_000_000
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.RETRIED: 1}, {})
    assert events(caplog) == ["delivery ended, the request will be retried"]


async def test_a_superseded_delivery_settles_nothing(bench: Bench) -> None:
    await bench.one(Superseded(request_id="r", reason="higher delivery"))
    assert bench.settler.bodies == []
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.SUPERSEDED: 1}, {})


async def test_a_lost_lease_revokes_the_delivery_and_settles_nothing(bench: Bench) -> None:
    bench.put()
    await bench.busy(1)
    bench.leases.lose(0)
    await bench.done(1)
    assert bench.deliveries[0].revocation.reason is Revoked.LEASE_LOST
    assert bench.settler.bodies == []
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.SUPERSEDED: 1}, {})


async def test_an_outcome_that_comes_after_the_lease_is_lost_settles_nothing(bench: Bench) -> None:
    async def stubborn(delivery: Delivery) -> Ending:
        await delivery.revocation.wait()
        return finished(Outcome.COMPLETED)

    bench.handle = stubborn
    bench.put()
    await bench.busy(1)
    bench.leases.lose(0)
    await bench.done(1)
    assert bench.settler.bodies == []
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.SUPERSEDED: 1}, {})


async def test_a_message_that_came_late_is_neither_taken_nor_handed_back(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def dropped() -> float:
        return bench.ends().get(DeliveryEnd.SUPERSEDED, 0)

    bench.leases.late = True
    bench.put()
    await eventually(dropped, lambda count: count == 1)
    assert (bench.deliveries, bench.leases.kept, bench.server.published) == ([], [], [])
    assert [r.levelname for r in caplog.records if "dropped" in r.getMessage()] == ["WARNING"]
    bench.leases.late = False
    await bench.one(finished(Outcome.COMPLETED))


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_GONE, Outcome.INVALID])
async def test_a_lease_that_expired_unnoticed_settles_nothing(
    bench: Bench, outcome: Outcome
) -> None:
    async def stopped_meanwhile(_: Delivery) -> Ending:
        bench.leases.kept[0].confirmed -= 31.0  # as after SIGSTOP and SIGCONT
        return finished(outcome)

    bench.handle = stopped_meanwhile
    bench.put()
    await bench.done(1)
    assert (bench.settler.bodies, bench.letters.letters) == ([], [])
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.SUPERSEDED: 1}, {})


async def test_a_lease_that_expires_before_the_answer_settles_nothing(bench: Bench) -> None:
    async def handle(_: Delivery) -> Ending:
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    bench.settler.gate = asyncio.Event()
    bench.put()
    await bench.busy(1)
    bench.leases.kept[0].confirmed -= 31.0
    bench.settler.gate.set()
    await bench.done(1)
    assert bench.settler.bodies == []
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.SUPERSEDED: 1}, {})
    assert bench.counted("dialback_ack_unconfirmed_total") == 0


async def test_the_lease_is_kept_until_settling_is_over(bench: Bench) -> None:
    bench.settler.gate = asyncio.Event()

    async def handle(_: Delivery) -> Ending:
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    bench.put()
    await bench.busy(1)
    assert len(bench.leases) == 1
    bench.settler.gate.set()
    await bench.done(1)
    assert len(bench.leases) == 0


async def test_an_unconfirmed_answer_is_counted_and_no_outcome(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    bench.settler.failing = True
    await bench.one(finished(Outcome.COMPLETED))
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.UNCONFIRMED: 1}, {})
    assert bench.counted("dialback_ack_unconfirmed_total") == 1
    assert events(caplog) == ["delivery ended"]
    (error,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert vars(error)["reason"] == "never confirmed"


async def test_a_dead_letter_is_written_before_the_message_is_terminated(bench: Bench) -> None:
    await bench.one(finished(Outcome.POISON), number=7)
    (letter,) = bench.letters.letters
    assert (letter.request_id, letter.outcome, letter.reason) == ("r", "poison", "why")
    assert (letter.worker, letter.origin) == ("pod-1", "JOBS:1:1700000000000000000")
    assert bench.settler.bodies == [b"+TERM poison"]
    assert bench.counted("dialback_dead_letters_total", reason="poison") == 1


async def test_a_letter_that_cannot_be_stored_leaves_the_message_for_later(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.letters.failing = True
    await bench.one(finished(Outcome.INVALID))
    assert bench.settler.bodies == [b'-NAK {"delay":2000000000}']
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.RETRIED: 1}, {})
    assert bench.counted("dialback_dead_letters_total", reason="invalid") == 0
    assert "dead letter could not be stored; trying again later" in caplog.messages


async def test_one_info_line_for_each_finished_request(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    ending = Finished(
        outcome=Outcome.COMPLETED,
        request_id="r-1",
        caller="10.0.0.1:5",
        items=3,
        response_bytes=99,
        time_to_first_response=0.0123,
        dials=2,
    )
    await bench.one(ending)
    (record,) = [r for r in caplog.records if r.getMessage() in SETTLE_EVENTS]
    assert (record.levelname, record.getMessage()) == ("INFO", "request finished")
    said = vars(record)
    wanted = {"request_id": "r-1", "lane": "normal", "seq": 1, "delivery": 1, "items": 3}
    wanted |= {"outcome": "completed", "caller": "10.0.0.1:5", "bytes": 99, "dials": 2}
    wanted |= {"ttfr_ms": 12.3, "dead_letter": False}
    assert said | wanted == said
    assert said["duration_ms"] >= 0
    assert "reason" not in said


async def test_a_refused_request_says_why_and_that_it_was_dead_lettered(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    await bench.one(finished(Outcome.INVALID))
    (record,) = [r for r in caplog.records if r.getMessage() in SETTLE_EVENTS]
    said = vars(record)
    assert said | {"outcome": "invalid", "reason": "why", "dead_letter": True} == said
    assert said["ttfr_ms"] is None


async def test_a_task_that_fails_is_logged_and_frees_its_slot(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: Delivery) -> Ending:
        raise RuntimeError("a fault of ours")

    bench.handle = broken
    bench.put()
    await bench.done(1)
    assert bench.settler.bodies == []
    assert len(bench.leases) == 0
    assert "a delivery's task failed" in caplog.messages
    await bench.one(finished(Outcome.COMPLETED))


async def test_the_gauge_follows_the_slots(bench: Bench) -> None:
    bench.put()
    await bench.busy(1)
    assert bench.counted("dialback_slots", state="busy") == 1
    bench.put()
    bench.put()
    await bench.busy(2)
    assert bench.counted("dialback_slots", state="busy") == 2
    assert bench.counted("dialback_slots", state="free") == 0
    bench.consumer.puller.stop()
    bench.consumer.revoke_all()
    await bench.done(2)
    assert bench.counted("dialback_slots", state="busy") == 0
    assert bench.counted("dialback_slots", state="free") == 2


async def test_a_message_without_a_slot_is_counted_as_handed_back() -> None:
    bench = Bench(FakeJetStream(), slots=1)
    async with consuming(bench):
        await eventually(lambda: lingering(bench), lambda count: count == 3)
        bench.server.put("high", 1)
        bench.server.put("low", 2)
        await bench.busy(1)
        await eventually(lambda: ends_of(bench), lambda ends: ends == {"handed_back": 1})
        assert bench.settler.happened == ["write", "-NAK"]
        (note,) = bench.notes.kept.values()
        assert note == Note(handed_back=frozenset({1}))
        bench.consumer.puller.stop()
        bench.consumer.revoke_all()
        await bench.done(1)


async def ends_of(bench: Bench) -> dict[DeliveryEnd, float]:
    return bench.ends()


async def lingering(bench: Bench) -> int:
    return len([pull for pull in bench.server.pulls if not pull.no_wait])


async def test_an_idle_consumer_is_drained_at_once(bench: Bench) -> None:
    bench.consumer.puller.stop()
    drained = await bench.consumer.drain(LIMIT, reserve=0.0, hurry=asyncio.Event())
    assert drained == Drained(interrupted=0, abandoned=0)


async def test_a_drain_lets_requests_finish(bench: Bench) -> None:
    finish = asyncio.Event()

    async def handle(_: Delivery) -> Ending:
        await finish.wait()
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    bench.put()
    await bench.busy(1)
    bench.consumer.puller.stop()
    asyncio.get_running_loop().call_soon(finish.set)
    drained = await bench.consumer.drain(LIMIT, reserve=1.0, hurry=asyncio.Event())
    assert drained == Drained(interrupted=0, abandoned=0)
    assert bench.settler.bodies == [b"+ACK"]


async def test_a_drain_ends_what_has_not_finished_within_its_time(bench: Bench) -> None:
    bench.put()
    bench.put()
    await bench.busy(2)
    bench.consumer.puller.stop()
    drained = await bench.consumer.drain(LIMIT, reserve=LIMIT - 0.01, hurry=asyncio.Event())
    assert drained == Drained(interrupted=2, abandoned=0)
    assert [d.revocation.reason for d in bench.deliveries] == [Revoked.SHUTDOWN] * 2
    assert bench.outcomes() == {Outcome.INTERRUPTED: 2}


async def test_a_hurried_drain_waits_no_longer(bench: Bench) -> None:
    bench.put()
    await bench.busy(1)
    bench.consumer.puller.stop()
    hurry = asyncio.Event()
    asyncio.get_running_loop().call_soon(hurry.set)
    drained = await bench.consumer.drain(LIMIT * 1000, reserve=LIMIT, hurry=hurry)
    assert drained == Drained(interrupted=1, abandoned=0)


async def test_a_drain_abandons_what_ignores_it(bench: Bench) -> None:
    async def deaf(_: Delivery) -> Ending:
        await asyncio.Event().wait()
        raise AssertionError("never")

    bench.handle = deaf
    bench.put()
    await bench.busy(1)
    bench.consumer.puller.stop()
    drained = await bench.consumer.drain(0.02, reserve=0.01, hurry=asyncio.Event())
    assert drained == Drained(interrupted=0, abandoned=1)
    assert (bench.settler.bodies, bench.ends()) == ([], {})
    assert (bench.consumer.in_flight, len(bench.leases)) == (0, 0)


async def test_an_outcome_that_is_known_is_settled_although_the_drain_is_over(
    bench: Bench,
) -> None:
    bench.settler.gate = asyncio.Event()

    async def handle(_: Delivery) -> Ending:
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    bench.put()
    await bench.busy(1)
    bench.consumer.puller.stop()
    drained = await bench.consumer.drain(0.02, reserve=0.01, hurry=asyncio.Event())
    assert drained == Drained(interrupted=0, abandoned=1)
    bench.settler.gate.set()

    async def bodies() -> list[bytes]:
        return bench.settler.bodies

    assert await eventually(bodies) == [b"+ACK"]


# --- notes ------------------------------------------------------------------------------------


def numbers(*found: int) -> frozenset[int]:
    return frozenset(found)


async def test_earlier_deliveries_are_told_apart_by_the_note(bench: Bench) -> None:
    bench.notes.kept[bench.next_key()] = Note(
        handed_back=numbers(1, 2), retried=numbers(3), superseded=numbers(4)
    )
    await bench.one(finished(Outcome.COMPLETED), number=8)
    (seen,) = bench.deliveries
    assert (seen.number, seen.attempts, seen.crashes, seen.epoch) == (8, 1, 3, CREATED_NS)


async def test_a_first_delivery_reads_no_note(bench: Bench) -> None:
    await bench.one(finished(Outcome.COMPLETED))
    (seen,) = bench.deliveries
    assert (seen.attempts, seen.crashes, seen.epoch) == (0, 0, CREATED_NS)
    assert bench.settler.happened == ["+ACK"]


async def test_without_a_note_every_earlier_delivery_was_a_crash(bench: Bench) -> None:
    await bench.one(finished(Outcome.COMPLETED), number=4)
    assert bench.deliveries[0].crashes == 3


async def test_a_note_that_cannot_be_read_counts_no_crash(bench: Bench) -> None:
    bench.notes.failing = True
    await bench.one(finished(Outcome.COMPLETED), number=4)
    assert (bench.deliveries[0].crashes, bench.deliveries[0].attempts) == (0, 0)


@pytest.mark.parametrize(
    ("ending", "note"),
    [
        (HandedBack(request_id="r", reason="drain"), Note(handed_back=numbers(2))),
        (finished(Outcome.REQUESTER_UNREACHABLE), Note(retried=numbers(2))),
    ],
)
async def test_the_note_is_written_before_the_nak(bench: Bench, ending: Ending, note: Note) -> None:
    await bench.one(ending, number=2)
    assert bench.settler.happened == ["read", "write", "-NAK"]
    await bench.noted(note)


async def test_a_note_that_cannot_be_written_does_not_keep_the_message(bench: Bench) -> None:
    bench.notes.failing = True
    await bench.one(HandedBack(request_id="r", reason="drain", delay=0.25))
    assert bench.settler.bodies == [b'-NAK {"delay":250000000}']
    assert bench.ends() == {DeliveryEnd.HANDED_BACK: 1}


async def test_a_letter_that_cannot_be_stored_is_neither_a_crash_nor_an_attempt(
    bench: Bench,
) -> None:
    bench.letters.failing = True
    await bench.one(finished(Outcome.INVALID))
    await bench.noted(Note(handed_back=numbers(1)))
    assert bench.settler.happened == ["write", "-NAK"]


async def test_an_unreachable_requester_s_message_waits_no_longer_than_it_has(
    bench: Bench,
) -> None:
    await bench.one(finished(Outcome.REQUESTER_UNREACHABLE), headers={"Dialback-Deadline": "1"})
    assert bench.settler.bodies == [b"+TERM requester_unreachable"]
    assert bench.outcomes() == {Outcome.REQUESTER_UNREACHABLE: 1}


async def test_a_superseded_delivery_is_no_crash(bench: Bench) -> None:
    await bench.one(Superseded(request_id="r", reason="higher delivery"))
    await bench.noted(Note(superseded=numbers(1)))


async def test_a_dropped_message_is_no_crash(bench: Bench) -> None:
    bench.leases.late = True
    bench.put()
    await bench.noted(Note(superseded=numbers(1)))


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.INVALID])
async def test_an_outcome_whose_settling_was_not_confirmed_is_noted(
    bench: Bench, outcome: Outcome
) -> None:
    bench.settler.failing = True
    await bench.one(finished(outcome))
    await bench.noted(Note(finished=outcome))
    assert bench.outcomes() == {}


async def test_an_outcome_whose_lease_expired_meanwhile_is_noted(bench: Bench) -> None:
    async def slow(_: Delivery) -> Ending:
        bench.leases.kept[0].confirmed -= 31.0
        return finished(Outcome.COMPLETED)

    bench.handle = slow
    bench.put()
    await bench.done(1)
    await bench.noted(Note(finished=Outcome.COMPLETED))


async def test_a_request_whose_letter_is_not_stored_is_not_noted_as_finished(
    bench: Bench,
) -> None:
    async def slow(_: Delivery) -> Ending:
        bench.leases.kept[0].confirmed -= 31.0
        return finished(Outcome.INVALID)

    bench.handle = slow
    bench.put()
    await bench.done(1)
    await bench.noted(Note(superseded=numbers(1)))
    assert bench.letters.letters == []


async def test_a_request_that_is_found_finished_is_not_run_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    bench.notes.kept[bench.next_key()] = Note(finished=Outcome.COMPLETED)
    bench.put(number=2, headers={"request-id": "named"})
    await eventually(lambda: ends_of(bench), lambda ends: ends == {"settled": 1})
    assert bench.deliveries == []
    assert bench.settler.happened == ["read", "+ACK"]
    assert bench.outcomes() == {Outcome.COMPLETED: 1}
    (record,) = [r for r in caplog.records if r.getMessage() in SETTLE_EVENTS]
    said = vars(record)
    assert (record.getMessage(), said["request_id"]) == ("request finished", "named")
    assert said["reason"].startswith("found finished: an earlier delivery ended it")
    assert len(bench.leases) == 0


async def test_one_that_is_found_dead_lettered_is_counted_as_that(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dialback")
    bench.notes.kept[bench.next_key()] = Note(finished=Outcome.REQUESTER_UNREACHABLE)
    bench.put(number=2)
    await eventually(lambda: ends_of(bench), lambda ends: ends == {"settled": 1})
    assert (bench.settler.bodies, bench.letters.letters) == ([b"+ACK"], [])
    assert bench.counted("dialback_dead_letters_total", reason="requester_unreachable") == 1
    (record,) = [r for r in caplog.records if r.getMessage() in SETTLE_EVENTS]
    assert (vars(record)["request_id"], vars(record)["dead_letter"]) == (
        f"seq-1-{PUBLISHED_NS}",
        True,
    )


async def test_a_hand_back_that_is_not_confirmed_is_counted_as_that() -> None:
    bench = Bench(FakeJetStream(), slots=1)
    bench.settler.failing = True
    async with consuming(bench):
        await eventually(lambda: lingering(bench), lambda count: count == 3)
        bench.server.put("high", 1)
        bench.server.put("low", 2)
        await eventually(lambda: ends_of(bench), lambda ends: ends == {"unconfirmed": 1})
        assert bench.counted("dialback_ack_unconfirmed_total") == 1
        assert len(bench.leases) == 1
        bench.consumer.puller.stop()
        bench.consumer.revoke_all()
        await bench.done(1)


async def test_a_recreated_consumer_is_another_epoch(bench: Bench) -> None:
    await bench.one(finished(Outcome.COMPLETED))
    await bench.one(finished(Outcome.COMPLETED))
    bench.sequence = 0
    await bench.one(finished(Outcome.COMPLETED))
    epochs = [delivery.epoch for delivery in bench.deliveries]
    assert (epochs, bench.refreshed) == ([CREATED_NS, CREATED_NS, CREATED_NS + 1], 1)


async def test_a_request_that_another_worker_left_interrupted_is_none_of_this_shutdown(
    bench: Bench,
) -> None:
    await bench.one(finished(Outcome.INTERRUPTED))
    bench.consumer.puller.stop()
    drained = await bench.consumer.drain(LIMIT, reserve=0.0, hurry=asyncio.Event())
    assert (drained.interrupted, bench.outcomes()) == (0, {Outcome.INTERRUPTED: 1})


async def test_the_end_of_a_drain_waits_for_notes_that_are_being_written(bench: Bench) -> None:
    await bench.one(Superseded(request_id="r", reason="higher delivery"))
    bench.consumer.puller.stop()
    await bench.consumer.drain(LIMIT, reserve=0.0, hurry=asyncio.Event())
    assert list(bench.notes.kept.values()) == [Note(superseded=numbers(1))]


# --- the same message again (a restarted server forgets what it has delivered) -----------------


async def again(bench: Bench, *, number: int = 1) -> None:
    """Deliver the last message once more, and wait until it has been taken."""
    kept = len(bench.leases.kept)
    bench.server.put("normal", bench.sequence, number=number, data=b"payload")

    async def taken() -> int:
        return len(bench.leases.kept)

    await eventually(taken, lambda count: count > kept)


async def happened(bench: Bench) -> list[str]:
    return bench.settler.happened


def held(bench: Bench) -> list[str]:
    """The ack subjects whose leases are kept."""
    return list(bench.leases._leases)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("number", [1, 2])
async def test_what_runs_goes_on_with_a_repetition_and_answers_that(
    bench: Bench, number: int
) -> None:
    ended = asyncio.Event()

    async def handle(_: Delivery) -> Ending:
        await ended.wait()
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    bench.put()
    await bench.busy(1)
    await again(bench, number=number)
    assert (len(bench.deliveries), bench.consumer.in_flight) == (1, 1)
    assert bench.counted("dialback_slots", state="free") == 1
    assert held(bench) == [ack_subject("normal", 1, number=number)]
    ended.set()
    await bench.done(1)
    assert bench.settler.replies == [ack_subject("normal", 1, number=number)]
    assert (bench.ends(), bench.outcomes()) == (
        {DeliveryEnd.SETTLED: 1},
        {Outcome.COMPLETED: 1},
    )
    assert len(bench.leases) == 0


async def test_a_loss_of_the_lease_before_the_repetition_is_no_loss(bench: Bench) -> None:
    bench.put()
    await bench.busy(1)
    await again(bench)
    bench.leases.lose(0)
    assert bench.deliveries[0].revocation.reason is None
    bench.leases.lose(1)
    await bench.done(1)
    assert bench.deliveries[0].revocation.reason is Revoked.LEASE_LOST


@pytest.mark.parametrize(("first", "second", "earlier"), [(1, 1, ()), (2, 1, ()), (1, 2, (1,))])
async def test_what_is_handed_back_after_a_repetition_is_noted_under_its_number(
    bench: Bench, first: int, second: int, earlier: tuple[int, ...]
) -> None:
    ended = asyncio.Event()

    async def handle(_: Delivery) -> Ending:
        await ended.wait()
        return HandedBack(request_id="r", reason="drain")

    bench.handle = handle
    bench.put(number=first)
    await bench.busy(1)
    await again(bench, number=second)
    ended.set()
    await bench.done(1)
    await bench.noted(Note(handed_back=numbers(second), superseded=numbers(*earlier)))


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.INVALID])
@pytest.mark.parametrize("lost", [False, True])
async def test_a_removal_under_way_answers_the_repetition(
    bench: Bench, outcome: Outcome, *, lost: bool
) -> None:
    async def handle(_: Delivery) -> Ending:
        return finished(outcome)

    bench.handle = handle
    bench.settler.gate = asyncio.Event()
    bench.put()
    await bench.settling()
    if lost:
        bench.leases.lose(0)
    await again(bench, number=2)
    bench.settler.gate.set()
    await bench.done(1)
    assert bench.settler.replies == [ack_subject("normal", 1, number=2)]
    assert (bench.ends(), bench.outcomes()) == ({DeliveryEnd.SETTLED: 1}, {outcome: 1})
    assert len(bench.leases) == 0


async def test_what_is_being_handed_back_runs_again_once_that_is_over_and_is_kept(
    bench: Bench,
) -> None:
    endings: list[Ending] = [HandedBack(request_id="r", reason="x"), finished(Outcome.COMPLETED)]

    async def handle(_: Delivery) -> Ending:
        return endings.pop(0)

    bench.handle = handle
    bench.settler.gate = asyncio.Event()
    bench.put()
    await bench.settling()
    await again(bench)
    assert len(bench.deliveries) == 1
    bench.settler.gate.set()
    await bench.done(2)
    assert bench.settler.bodies == [b"+ACK"]  # a NAK would take it away from ourselves
    assert bench.outcomes() == {Outcome.COMPLETED: 1}
    assert len(bench.leases) == 0


async def test_after_a_lost_lease_the_repetition_waits_for_the_end_of_the_first_run(
    bench: Bench,
) -> None:
    ended = asyncio.Event()
    running: list[int] = []

    async def handle(delivery: Delivery) -> Ending:
        running.append(delivery.number)
        assert len(running) == 1
        await ended.wait()
        running.remove(delivery.number)
        if delivery.number == 1:
            return Superseded(request_id="r", reason="lease lost")
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    bench.put()
    await bench.busy(1)
    bench.leases.kept[0].confirmed -= 31.0  # expired, and the lease thread has not noticed
    await again(bench, number=2)
    assert bench.deliveries[0].revocation.reason is Revoked.LEASE_LOST
    assert (len(bench.deliveries), bench.consumer.in_flight) == (1, 2)
    assert held(bench) == [ack_subject("normal", 1, number=2)]
    ended.set()
    await bench.done(2)
    assert bench.settler.replies == [ack_subject("normal", 1, number=2)]
    assert bench.outcomes() == {Outcome.COMPLETED: 1}
    assert bench.ends() == {DeliveryEnd.SUPERSEDED: 1, DeliveryEnd.SETTLED: 1}


async def test_a_hand_back_without_a_slot_yields_to_the_repetition() -> None:
    ended = asyncio.Event()

    async def handle(_: Delivery) -> Ending:
        await ended.wait()
        return finished(Outcome.COMPLETED)

    bench = Bench(FakeJetStream(), slots=1, handle=handle)
    bench.notes.gate = asyncio.Event()
    async with consuming(bench):
        await eventually(lambda: lingering(bench), lambda count: count == 3)
        bench.server.put("high", 1)
        bench.server.put("normal", 2)
        await eventually(lambda: happened(bench), lambda events: events == ["write"])
        ended.set()
        await bench.done(1)
        bench.sequence = 2
        await again(bench)
        assert (len(bench.deliveries), bench.consumer.in_flight) == (1, 1)
        bench.notes.gate.set()
        await bench.done(2)
    assert bench.settler.bodies == [b"+ACK", b"+ACK"]
    assert bench.ends() == {DeliveryEnd.SETTLED: 2, DeliveryEnd.SUPERSEDED: 1}


async def test_a_drain_keeps_a_repetition_of_what_it_lets_finish(bench: Bench) -> None:
    ended = asyncio.Event()

    async def handle(_: Delivery) -> Ending:
        await ended.wait()
        return finished(Outcome.COMPLETED)

    bench.handle = handle
    bench.put()
    await bench.busy(1)
    await eventually(lambda: lingering(bench), lambda count: count > 0)
    bench.consumer.puller.stop()
    await again(bench, number=2)
    ended.set()
    await bench.done(1)
    assert (bench.settler.bodies, len(bench.leases)) == ([b"+ACK"], 0)


async def test_what_was_published_before_a_reconnect_may_have_been_delivered_before(
    bench: Bench,
) -> None:
    await bench.one(finished(Outcome.COMPLETED))
    bench.consumer.puller.reset()
    bench.notes.kept[bench.next_key()] = Note(finished=Outcome.COMPLETED)
    bench.put()
    await eventually(lambda: ends_of(bench), lambda ends: ends == {"settled": 2})
    await bench.one(finished(Outcome.COMPLETED), number=2)
    assert [delivery.redelivered for delivery in bench.deliveries] == [False, True]
