"""The worker's side of a stream that survives its worker (overview section 4)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from typing_extensions import override
from xxhash import xxh3_64

from dialback.ingress.answer import OUTRANKED, OUTRANKING, need_not_ask
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine, engine
from dialback.outcomes import (
    Delivery,
    Ending,
    HandedBack,
    Outcome,
    Revocation,
    Revoked,
    Superseded,
)
from dialback.transport.dial import DialSettings
from dialback.transport.two_part import TwoPartMessage, encode
from support.frames import request_payload, tcp_info
from support.ingress_rig import PATIENT, IngressRig, finished, item
from support.scripted_requester import KILL, STOP, CallHome, ScriptedRequester

LONG_AGO = str(1_000_000_000)
SUPERSEDED = encode(b'{"superseded":8}')


def answer(delivered: int, *, fruitless: int = 0, **more: Any) -> bytes:
    """The requester's answer to a resumable handshake."""
    return encode(orjson.dumps({"resume": delivered, "fruitless": fruitless} | more))


def digest_of(*values: Any) -> str:
    return xxh3_64(b"".join(item(value)[24:] for value in values)).hexdigest()


class Counting:
    """Yields 0, 1, … as far as it is let, and keeps what it saw."""

    def __init__(self, count: int = 5, *, flow: bool = False) -> None:
        self.count = count
        self.flow = flow
        self.calls = 0
        self.context: Context | None = None
        self.closed = asyncio.Event()

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls += 1
        self.context = context
        try:
            for value in range(self.first(context), self.count):
                yield value
            if self.flow:
                await context.async_killed_or_stopped()
        finally:
            self.closed.set()

    def first(self, context: Context) -> int:
        return 0


class Replaying(Counting):
    resume = "replay"


class Continuing(Counting):
    resume = "continue"

    @override
    def first(self, context: Context) -> int:
        return context.resume_from


class Serving:
    """One resumable delivery on its way to a scripted requester."""

    def __init__(
        self,
        target: object,
        *,
        number: int = 2,
        headers: dict[str, str] | None = None,
        answer_timeout: float = PATIENT,
        redelivered: bool = False,
        crashes: int = 0,
    ) -> None:
        self.rig = IngressRig(
            target,
            dial=DialSettings(attempts=1),
            answer_timeout=answer_timeout,
        )
        self.requester = ScriptedRequester()
        self.revocation = Revocation()
        self._number = number
        self._headers = headers
        self._redelivered = redelivered
        self._crashes = crashes

    async def __aenter__(self) -> "Serving":
        await self.requester.__aenter__()
        address = self.requester.address
        self.task = self.rig.start(
            request_payload(address, {}, info=tcp_info(address, resumable=1)),
            number=self._number,
            headers=self._headers,
            redelivered=self._redelivered,
            crashes=self._crashes,
            revocation=self.revocation,
        )
        self.home = await self.requester.connection()
        self.handshake = await self.home.frame()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.requester.__aexit__(None, None, None)
        await self.task

    async def ending(self) -> Ending:
        return await self.task

    async def rest(self) -> list[TwoPartMessage]:
        """The frames up to the sentinel or the end; then close, as a requester does."""
        frames = await self.home.frames()
        await self.home.close()
        return frames


def values_of(frames: list[TwoPartMessage]) -> list[Any]:
    """The values of the items, ``final`` for the final, errors as their reason and text."""
    found: list[Any] = []
    for frame in frames:
        if not frame.data:
            continue
        body = orjson.loads(frame.data)
        if "data" in body and body["data"].get("event") == "error":
            found.append((body["data"]["error"]["reason"], body["data"]["error"]["message"]))
        elif "data" in body:
            found.append(body["data"]["data"])
        if body["complete_final"]:
            found.append("final")
    return found


async def first_items(home: CallHome, count: int) -> None:
    """Read the prologue and so many items."""
    for _ in range(count + 1):
        await home.frame()


# --- the agreement ----------------------------------------------------------------------


async def test_the_handshake_says_which_delivery_dials_and_the_engine_waits_for_the_answer() -> (
    None
):
    target = Counting()
    async with Serving(target, number=3) as serving:
        assert serving.handshake is not None
        said = orjson.loads(serving.handshake.header)
        assert (said["resume"], said["delivery"], said["epoch"], said["unable"]) == (1, 3, 0, 1)
        assert target.calls == 0
        await serving.home.send(answer(0))
        assert values_of(await serving.rest()) == [0, 1, 2, 3, 4, "final"]
        assert finished(await serving.ending()).outcome is Outcome.COMPLETED


async def test_a_worker_whose_engine_can_resume_does_not_say_that_it_cannot() -> None:
    async with Serving(Replaying()) as serving:
        assert serving.handshake is not None
        assert "unable" not in orjson.loads(serving.handshake.header)
        await serving.home.send(answer(0))
        await serving.rest()


async def test_a_replaying_engine_runs_again_and_what_was_delivered_is_dropped() -> None:
    async with Serving(Replaying()) as serving:
        await serving.home.send(answer(2, digest=digest_of(0, 1)))
        assert values_of(await serving.rest()) == [2, 3, 4, "final"]
        assert finished(await serving.ending()).outcome is Outcome.COMPLETED
        assert serving.rig.sample("dialback_replayed_items_total") == 2
        assert serving.rig.sample("dialback_streams_resumed_total") == 1
        assert serving.rig.sample("dialback_handover_seconds_count") == 1


async def test_a_continuing_engine_starts_where_the_caller_is() -> None:
    target = Continuing()
    async with Serving(target) as serving:
        await serving.home.send(answer(3))
        assert values_of(await serving.rest()) == [3, 4, "final"]
        assert target.context is not None
        assert target.context.resume_from == 3
        assert target.context.delivered is None


async def test_a_continuing_engine_is_given_the_history_that_the_requester_kept() -> None:
    target = Continuing()
    async with Serving(target) as serving:
        await serving.home.send(encode(b'{"resume":2,"fruitless":0}', b"[0,1]"))
        await serving.rest()
        assert target.context is not None
        assert target.context.delivered == [0, 1]


async def test_an_engine_that_cannot_resume_ends_the_stream_with_a_typed_error() -> None:
    target = Counting()
    async with Serving(target) as serving:
        await serving.home.send(answer(2))
        ((reason, text), final) = values_of(await serving.rest())
        assert reason == "dialback.stream_interrupted"
        assert "2 items" in text
        assert final == "final"
        ending = finished(await serving.ending())
        assert (ending.outcome, ending.caller_told) == (Outcome.INTERRUPTED, True)
        assert target.calls == 0


async def test_workers_lost_in_a_row_without_an_item_make_it_poison() -> None:
    target = Replaying()
    async with Serving(target, number=9) as serving:
        await serving.home.send(answer(2, fruitless=3))
        ((_, text), final) = values_of(await serving.rest())
        assert "3 workers in a row" in text
        assert final == "final"
        assert finished(await serving.ending()).outcome is Outcome.POISON
        assert target.calls == 0


async def test_crashes_that_brought_items_are_no_step_towards_poison() -> None:
    async with Serving(Replaying(), number=50) as serving:
        await serving.home.send(answer(2, fruitless=0))
        assert values_of(await serving.rest()) == [2, 3, 4, "final"]


async def test_a_caller_with_items_is_served_though_its_first_item_was_due_long_ago() -> None:
    headers = {"Dialback-Start-By": LONG_AGO}
    async with Serving(Replaying(), headers=headers) as serving:
        await serving.home.send(answer(2))
        assert values_of(await serving.rest()) == [2, 3, 4, "final"]


async def test_a_caller_without_items_whose_first_is_overdue_is_told_so() -> None:
    headers = {"Dialback-Start-By": LONG_AGO}
    async with Serving(Replaying(), headers=headers) as serving:
        await serving.home.send(answer(0))
        await serving.rest()
        assert finished(await serving.ending()).outcome is Outcome.EXPIRED


# --- no answer --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_stream_that_is_over_ends_quietly(how: str) -> None:
    target = Counting()
    async with Serving(target) as serving:
        if how == "reset":
            serving.home.reset()
        else:
            await serving.home.close()
        assert finished(await serving.ending()).outcome is Outcome.CLIENT_GONE
        assert target.calls == 0


async def test_an_older_delivery_than_the_one_that_is_served_settles_nothing() -> None:
    target = Counting()
    async with Serving(target) as serving:
        await serving.home.send(SUPERSEDED)
        assert isinstance(await serving.ending(), Superseded)
        assert target.calls == 0


async def test_a_requester_that_does_not_answer_is_tried_again_later() -> None:
    async with Serving(Counting(), answer_timeout=0.05) as serving:
        assert finished(await serving.ending()).outcome is Outcome.REQUESTER_UNREACHABLE


async def test_a_drain_while_waiting_for_the_answer_hands_the_delivery_back() -> None:
    async with Serving(Counting()) as serving:
        serving.revocation.set(Revoked.SHUTDOWN)
        assert isinstance(await serving.ending(), HandedBack)


# --- a first delivery -----------------------------------------------------------------------


def announces_fresh(serving: Serving) -> bool:
    assert serving.handshake is not None
    said = orjson.loads(serving.handshake.header)
    assert (said["resume"], said["epoch"]) == (1, 0)
    return "fresh" in said


async def test_a_first_delivery_runs_its_engine_without_an_answer() -> None:
    async with Serving(Replaying(), number=1) as serving:
        assert announces_fresh(serving)
        assert values_of(await serving.rest()) == [0, 1, 2, 3, 4, "final"]
        assert finished(await serving.ending()).outcome is Outcome.COMPLETED
        assert serving.rig.counts().errors == {}
        assert serving.rig.sample("dialback_streams_resumed_total") == 0
        assert serving.rig.sample("dialback_handover_seconds_count") == 0


@pytest.mark.parametrize(
    "not_first", [{"number": 2}, {"redelivered": True}, {"crashes": 1}], ids=str
)
async def test_a_delivery_that_may_not_be_the_first_asks(not_first: dict[str, Any]) -> None:
    target = Replaying()
    how: dict[str, Any] = {"number": 1} | not_first
    async with Serving(target, **how) as serving:
        assert not announces_fresh(serving)
        assert target.calls == 0
        await serving.home.send(answer(0))
        await serving.rest()


async def test_a_first_delivery_whose_first_item_is_overdue_asks() -> None:
    async with Serving(Replaying(), number=1, headers={"Dialback-Start-By": LONG_AGO}) as serving:
        assert not announces_fresh(serving)
        await serving.home.send(answer(0))
        await serving.rest()
        assert finished(await serving.ending()).outcome is Outcome.EXPIRED


@pytest.mark.parametrize(
    ("delivery", "expired", "fresh"),
    [
        (Delivery(payload=b""), False, True),
        (Delivery(payload=b"", epoch=5), False, True),
        (Delivery(payload=b""), True, False),
        (Delivery(payload=b"", number=2), False, False),
        (Delivery(payload=b"", redelivered=True), False, False),
        (Delivery(payload=b"", attempts=1), False, False),
        (Delivery(payload=b"", crashes=1), False, False),
    ],
)
def test_who_need_not_ask(delivery: Delivery, expired: bool, fresh: bool) -> None:
    assert need_not_ask(delivery, expired=expired) is fresh


async def test_an_answer_without_an_engine_always_asks() -> None:
    headers = {"Dialback-Deadline": LONG_AGO}
    async with Serving(Replaying(), number=1, headers=headers) as serving:
        assert not announces_fresh(serving)
        await serving.home.send(answer(0))
        await serving.rest()
        assert finished(await serving.ending()).outcome is Outcome.EXPIRED
    assert not OUTRANKING.fresh
    assert not OUTRANKED.fresh


def not_first(serving: Serving, ending: Ending) -> bool:
    """Whether the delivery was handed back at once, and nothing is counted as wrong."""
    assert isinstance(ending, HandedBack)
    assert (ending.delay, ending.fruitless) == (0, False)
    counts = serving.rig.counts()
    assert (counts.errors, counts.cancellations, counts.publish_failures) == ({}, 0, {})
    return ending.reason == "it is not the first delivery: the caller has had another worker"


async def test_an_answer_before_the_engine_has_accepted_hands_the_delivery_back() -> None:
    entered, closed = asyncio.Event(), asyncio.Event()

    @engine(resume="replay")
    async def hesitating(request: Any) -> AsyncIterator[Any]:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()
        yield 0

    async with Serving(hesitating, number=1) as serving:
        await entered.wait()
        await serving.home.send(answer(3))
        assert not_first(serving, await serving.ending())
        assert closed.is_set()


async def test_an_answer_while_the_engine_streams_ends_it_and_hands_the_delivery_back() -> None:
    target = Replaying(flow=True)
    async with Serving(target, number=1) as serving:
        await first_items(serving.home, 5)
        await serving.home.send(answer(3))
        assert not_first(serving, await serving.ending())
        assert target.closed.is_set()
        assert target.context is not None
        assert target.context.is_killed()


async def test_an_answer_while_a_stopped_engine_ends_hands_the_delivery_back() -> None:
    stopped, go_on = asyncio.Event(), asyncio.Event()

    @engine(resume="replay")
    async def lingering(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 0
        await context.async_killed_or_stopped()
        stopped.set()
        await go_on.wait()

    async with Serving(lingering, number=1) as serving:
        await first_items(serving.home, 1)
        await serving.home.send(STOP)
        await stopped.wait()
        await serving.home.send(answer(3))
        assert not_first(serving, await serving.ending())


@pytest.mark.parametrize("resumed", [0, 3])
async def test_an_answer_after_the_final_hands_the_delivery_back(resumed: int) -> None:
    async with Serving(Replaying(), number=1) as serving:
        assert values_of(await serving.home.frames()) == [0, 1, 2, 3, 4, "final"]
        await serving.home.send(answer(resumed))
        await serving.home.close()
        assert not_first(serving, await serving.ending())


async def test_an_answer_that_comes_with_the_close_hands_the_delivery_back() -> None:
    async with Serving(Replaying(), number=1) as serving:
        await serving.home.send(answer(0))
        serving.home.half_close()
        assert not_first(serving, await serving.ending())


async def test_a_first_delivery_that_was_superseded_settles_nothing() -> None:
    async with Serving(Replaying(flow=True), number=1) as serving:
        await first_items(serving.home, 5)
        await serving.home.send(SUPERSEDED)
        assert isinstance(await serving.ending(), Superseded)


async def test_a_stop_right_behind_a_first_handshake_is_heard() -> None:
    async with Serving(Counting(0, flow=True), number=1) as serving:
        await serving.home.send(STOP)
        assert values_of(await serving.rest()) == ["final"]
        assert finished(await serving.ending()).outcome is Outcome.STOPPED


async def test_a_kill_right_behind_a_first_handshake_is_the_callers_will() -> None:
    async with Serving(Counting(0, flow=True), number=1) as serving:
        await serving.home.send(KILL)
        assert finished(await serving.ending()).outcome is Outcome.KILLED


async def test_a_drain_hands_a_first_delivery_over() -> None:
    async with Serving(Replaying(0, flow=True), number=1) as serving:
        await first_items(serving.home, 0)
        serving.revocation.set(Revoked.SHUTDOWN)
        assert values_of(await serving.rest()) == []
        assert isinstance(await serving.ending(), HandedBack)


async def test_a_spent_subject_is_client_gone_as_the_next_delivery_finds_out() -> None:
    async with Serving(Counting(0, flow=True), number=1) as serving:
        serving.home.reset()
        ending = await serving.ending()
        assert isinstance(ending, HandedBack), "it may as well be a network that failed"
        assert ending.delay <= 0.5
        counts = serving.rig.counts()
        assert (counts.publish_failures, counts.errors) == ({}, {}), "the next dial finds out"
    async with Serving(Counting(0, flow=True), number=2) as serving:
        serving.home.reset()
        assert finished(await serving.ending()).outcome is Outcome.CLIENT_GONE


async def test_a_subject_that_is_spent_when_all_is_written_is_not_completed() -> None:
    async with Serving(Replaying(), number=1) as serving:
        await serving.home.frames()
        serving.home.reset()
        assert isinstance(await serving.ending(), HandedBack)


# --- the stream is lost -------------------------------------------------------------------


async def test_a_lost_connection_hands_the_delivery_back_for_the_next_dial_to_decide() -> None:
    target = Replaying(flow=True)
    async with Serving(target) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        serving.home.reset()
        ending = await serving.ending()
        assert isinstance(ending, HandedBack)
        assert 0.1 <= ending.delay <= 0.5
        assert target.closed.is_set()
        assert serving.rig.counts().publish_failures == {("response", "transport_failure"): 1}
        assert serving.rig.counts().cancellations == 0


async def test_a_newer_worker_takes_the_stream_away_and_nothing_is_settled() -> None:
    target = Replaying(flow=True)
    async with Serving(target) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        await serving.home.send(SUPERSEDED)
        assert isinstance(await serving.ending(), Superseded)
        assert target.closed.is_set()


async def test_a_requester_that_does_not_close_is_asked_again_by_the_next_dial() -> None:
    soon = {"Dialback-Deadline": str(10**18 + 1)}  # the rig's clock stands still just before
    async with Serving(Replaying(), headers=soon) as serving:
        await serving.home.send(answer(0))
        await serving.home.frames()
        assert isinstance(await serving.ending(), HandedBack)


async def test_kill_is_the_callers_will() -> None:
    async with Serving(Replaying(flow=True)) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        await serving.home.send(KILL)
        assert finished(await serving.ending()).outcome is Outcome.KILLED


async def test_stop_right_behind_the_answer_is_heard() -> None:
    async with Serving(Replaying(flow=True)) as serving:
        await serving.home.send(answer(0) + STOP)
        frames = await serving.rest()
        assert values_of(frames)[-1] == "final"
        assert finished(await serving.ending()).outcome is Outcome.STOPPED


# --- drain ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target_type", [Replaying, Continuing])
async def test_a_drain_hands_over_between_two_items_and_the_engine_hears_no_stop(
    target_type: type[Counting],
) -> None:
    target = target_type(flow=True)
    async with Serving(target) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        serving.revocation.offer_handover()
        assert values_of(await serving.rest()) == []
        ending = await serving.ending()
        assert isinstance(ending, HandedBack)
        assert ending.delay == 0
        assert target.closed.is_set()
        assert target.context is not None
        assert not target.context.is_stopped()


async def test_a_drain_that_has_begun_already_hands_over_at_once() -> None:
    async with Serving(Replaying(flow=True)) as serving:
        serving.revocation.offer_handover()
        await serving.home.send(answer(2))
        assert values_of(await serving.rest()) == []
        assert isinstance(await serving.ending(), HandedBack)


async def test_an_engine_that_cannot_resume_may_finish_in_a_drain() -> None:
    async with Serving(Counting()) as serving:
        serving.revocation.offer_handover()
        await serving.home.send(answer(0))
        assert values_of(await serving.rest()) == [0, 1, 2, 3, 4, "final"]


async def test_an_engine_that_cannot_resume_is_interrupted_at_the_end_of_the_drain() -> None:
    async with Serving(Counting(flow=True)) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        serving.revocation.set(Revoked.SHUTDOWN)
        ((reason, _), final) = values_of(await serving.rest())
        assert (reason, final) == ("dialback.stream_interrupted", "final")
        assert finished(await serving.ending()).outcome is Outcome.INTERRUPTED


async def test_a_stream_without_items_starts_over_elsewhere_after_a_drain() -> None:
    async with Serving(Counting(0, flow=True)) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 0)
        serving.revocation.set(Revoked.SHUTDOWN)
        assert values_of(await serving.rest()) == []
        assert isinstance(await serving.ending(), HandedBack)


async def test_a_caller_that_asked_to_stop_gets_its_final_in_a_drain_too() -> None:
    async with Serving(Replaying(flow=True)) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        await serving.home.send(STOP)
        serving.revocation.offer_handover()
        assert values_of(await serving.rest())[-1:] in (["final"], [])


async def test_a_lost_lease_settles_nothing() -> None:
    async with Serving(Replaying(flow=True)) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        serving.revocation.set(Revoked.LEASE_LOST)
        assert isinstance(await serving.ending(), Superseded)


async def test_a_cancelled_stream_is_ended_and_not_handed_over() -> None:
    async with Serving(Replaying(flow=True)) as serving:
        await serving.home.send(answer(0))
        await first_items(serving.home, 5)
        serving.revocation.set(Revoked.CANCELLED, "wrong prompt")
        ((_, text), final) = values_of(await serving.rest())
        assert text.endswith("an operator cancelled the request: wrong prompt")
        assert final == "final"
        assert finished(await serving.ending()).outcome is Outcome.CANCELLED


async def test_a_drain_waits_for_no_caller_that_has_not_read_to_the_end() -> None:
    async with Serving(Replaying()) as serving:
        await serving.home.send(answer(0))
        await serving.home.frames()  # all is written, but the requester does not close
        serving.revocation.offer_handover()
        assert isinstance(await serving.ending(), HandedBack)


async def test_an_engine_that_cannot_resume_is_not_run_again_for_a_caller_that_reads_slowly() -> (
    None
):
    async with Serving(Counting()) as serving:
        await serving.home.send(answer(0))
        await serving.home.frames()
        serving.revocation.set(Revoked.SHUTDOWN)
        assert finished(await serving.ending()).outcome is Outcome.COMPLETED


async def test_a_caller_that_reads_slowly_is_waited_for() -> None:
    async with Serving(Replaying()) as serving:
        await serving.home.send(answer(0))
        await serving.home.frames()
        await asyncio.sleep(0)
        assert not serving.task.done()
        await serving.home.close()
        assert finished(await serving.ending()).outcome is Outcome.COMPLETED


# --- replays that are none ------------------------------------------------------------------


async def test_a_replay_that_differs_is_an_error_the_caller_sees() -> None:
    async with Serving(Replaying()) as serving:
        await serving.home.send(answer(2, digest=digest_of(0, 7)))
        ((reason, text), final) = values_of(await serving.rest())
        assert (reason, final) == ("dialback.stream_interrupted", "final")
        assert "differs" in text
        assert finished(await serving.ending()).outcome is Outcome.ENGINE_FAILED


async def test_a_replay_that_ends_early_is_an_error_the_caller_sees() -> None:
    async with Serving(Replaying(3)) as serving:
        await serving.home.send(answer(4))
        ((reason, text), final) = values_of(await serving.rest())
        assert (reason, final) == ("dialback.stream_interrupted", "final")
        assert "3 of 4 items" in text
        assert finished(await serving.ending()).outcome is Outcome.ENGINE_FAILED


@engine(resume="replay")
async def breaking(request: Any) -> AsyncIterator[Any]:
    yield 0
    raise ValueError("always at the same place")


async def test_an_error_item_that_the_caller_has_is_not_written_again() -> None:
    async with Serving(breaking) as serving:
        await serving.home.send(answer(2))
        assert values_of(await serving.rest()) == ["final"]
        assert finished(await serving.ending()).outcome is Outcome.ENGINE_FAILED


async def test_an_error_that_the_caller_has_not_is_written() -> None:
    async with Serving(breaking) as serving:
        await serving.home.send(answer(1))
        ((_, text), final) = values_of(await serving.rest())
        assert (text, final) == ("ValueError: always at the same place", "final")


async def test_an_error_before_the_items_that_the_caller_has_is_a_replay_that_differs() -> None:
    async with Serving(breaking) as serving:
        await serving.home.send(answer(5))
        ((reason, text), final) = values_of(await serving.rest())
        assert (reason, final) == ("dialback.stream_interrupted", "final")
        assert "2 of 5 items" in text


# --- what an engine declares -----------------------------------------------------------------


def test_resume_is_declared_by_a_decorator_or_a_class_attribute() -> None:
    assert Engine(breaking).resume == "replay"
    assert Engine(Continuing).resume == "continue"
    assert Engine(Counting).resume is None


def test_a_word_that_is_no_ability_is_refused() -> None:
    with pytest.raises(ValueError, match="none of replay, continue"):
        engine(resume="again")
