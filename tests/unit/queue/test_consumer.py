import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from nats.aio.msg import Msg
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
    Revoked,
    Superseded,
)
from dialback.queue.api import JetStreamApi
from dialback.queue.connection import ServerAddress
from dialback.queue.consumer import Consumer, Drained
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters
from dialback.queue.delivery import LeaseExpiredError, Settler
from dialback.queue.lease import Lease, LeaseKeeper
from dialback.queue.policy import RetryPolicy
from dialback.queue.publisher import Publisher
from dialback.queue.topology import Endpoint
from support.eventually import eventually
from support.fake_jetstream import FakeJetStream
from support.queue_rig import LANES, LIMIT

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
        self.failing = False
        self.gate: asyncio.Event | None = None

    @override
    async def confirm(
        self, message: Msg, body: bytes, *, lost: Callable[[], bool] = lambda: False
    ) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise ServerUnavailableError("never confirmed")
        if lost():
            raise LeaseExpiredError("too late")
        self.bodies.append(body)


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
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    leases: RecordingLeases = field(default_factory=RecordingLeases)
    deliveries: list[Delivery] = field(default_factory=list[Delivery])
    sequence: int = 0

    def __post_init__(self) -> None:
        self.settler = RecordingSettler(self.server)
        self.letters = RecordingLetters(self.server)
        self.consumer = Consumer(
            self.server.client,
            stream="JOBS",
            lanes=LANES,
            slots=self.slots,
            handle=self._handle,
            leases=self.leases,
            settler=self.settler,
            dead_letters=self.letters,
            metrics=ServiceMetrics(
                self.registry, outcomes=Outcome, delivery_ends=DeliveryEnd, version="1", slots=2
            ),
            worker="pod-1",
            policy=RetryPolicy(max_attempts=3, retry_delay=2.0),
        )
        self.handle: Callable[[Delivery], Awaitable[Ending]] = until_revoked

    async def _handle(self, delivery: Delivery) -> Ending:
        self.deliveries.append(delivery)
        return await self.handle(delivery)

    def put(self, *, number: int = 1) -> None:
        self.sequence += 1
        self.server.put("normal", self.sequence, number=number, data=b"payload")

    async def busy(self, count: int) -> None:
        """Wait until so many deliveries have reached the ingress and are still there."""

        async def both() -> tuple[int, int]:
            return len(self.deliveries), self.consumer.in_flight

        await eventually(both, lambda seen: seen[0] >= count and seen[1] == count)

    async def done(self, count: int) -> None:
        """Wait until so many deliveries have come and all have ended."""

        async def both() -> tuple[int, int]:
            return len(self.deliveries), self.consumer.in_flight

        await eventually(both, lambda seen: seen == (count, 0))

    async def one(self, ending: Ending, *, number: int = 1) -> None:
        """Let one delivery end like this."""

        async def handle(_: Delivery) -> Ending:
            return ending

        self.handle = handle
        count = len(self.deliveries) + 1
        self.put(number=number)
        await self.done(count)

    def counted(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        assert value is not None
        return value

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
        assert bench.ends() == {DeliveryEnd.HANDED_BACK: 1}
        bench.consumer.puller.stop()
        bench.consumer.revoke_all()
        await bench.done(1)


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
