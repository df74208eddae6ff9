"""What a worker makes of the requester's answer, and a replay that must be the same."""

import pytest
from xxhash import xxh3_64

from dialback.ingress.resumption import GiveUp, Plan, Replay, ReplayError, Resume, Start, plan
from dialback.outcomes import Outcome
from dialback.transport.dynamo_errors import STREAM_INTERRUPTED_REASON
from dialback.transport.messages import ResumeAnswer

BODIES = [b"one", b"two", b"three"]
DIGEST = xxh3_64(b"onetwothree").intdigest()


def answered(
    delivered: int, *, fruitless: int = 0, history: list[int] | None = None, digest: str = ""
) -> ResumeAnswer:
    return ResumeAnswer(
        resume=delivered, fruitless=fruitless, delivered=history, digest=digest, waited_ms=250
    )


def planned(answer: ResumeAnswer, ability: Resume | None, *, expired: bool = False) -> Plan:
    return plan(answer, ability, max_crashes=3, expired=expired)


@pytest.mark.parametrize("ability", [None, *Resume])
def test_a_stream_without_items_starts_whatever_the_engine_can_do(ability: Resume | None) -> None:
    assert planned(answered(0), ability) == Start(waited=0.25)


def test_an_engine_that_replays_runs_again_and_its_first_items_are_dropped() -> None:
    digest = f"{DIGEST:x}"
    start = planned(answered(3, history=[1, 2, 3], digest=digest), Resume.REPLAY)
    assert start == Start(delivered=3, skip=3, digest=DIGEST, waited=0.25)


def test_an_engine_that_continues_is_told_where_and_what_was_delivered() -> None:
    start = planned(answered(3, history=[1, 2, 3]), Resume.CONTINUE)
    assert start == Start(delivered=3, skip=0, history=[1, 2, 3], waited=0.25)


def test_an_engine_that_can_do_neither_ends_the_stream_with_a_clear_error() -> None:
    given_up = planned(answered(3), None)
    assert isinstance(given_up, GiveUp)
    assert given_up.outcome is Outcome.INTERRUPTED
    assert given_up.error.reason == STREAM_INTERRUPTED_REASON
    assert "lost after 3 items" in given_up.error.message


@pytest.mark.parametrize(("fruitless", "poison"), [(0, False), (2, False), (3, True), (4, True)])
@pytest.mark.parametrize("delivered", [0, 5])
def test_workers_lost_in_a_row_without_a_new_item_make_it_poison(
    fruitless: int, poison: bool, delivered: int
) -> None:
    decided = planned(answered(delivered, fruitless=fruitless), Resume.REPLAY)
    assert isinstance(decided, GiveUp) is poison
    if isinstance(decided, GiveUp):
        assert decided.outcome is Outcome.POISON


@pytest.mark.parametrize(("delivered", "poison"), [(0, True), (1, False)])
def test_deaths_before_the_dial_count_until_there_is_progress(delivered: int, poison: bool) -> None:
    decided = plan(answered(delivered), Resume.REPLAY, max_crashes=3, expired=False, crashes=3)
    assert isinstance(decided, GiveUp) is poison


def test_a_caller_whose_first_item_is_overdue_is_told_so() -> None:
    decided = planned(answered(0), Resume.REPLAY, expired=True)
    assert isinstance(decided, GiveUp)
    assert decided.outcome is Outcome.EXPIRED


def test_a_caller_that_has_items_waits_on() -> None:
    assert isinstance(planned(answered(1), Resume.REPLAY, expired=True), Start)


def replayed(bodies: list[bytes], digest: int = DIGEST) -> Replay:
    replay = Replay(Start(delivered=3, skip=3, digest=digest))
    for body in bodies:
        assert replay.pending
        replay.drop(body)
    return replay


def test_the_items_that_the_requester_has_are_dropped_and_no_more() -> None:
    replay = replayed(BODIES)
    assert not replay.pending
    assert replay.dropped == 3
    replay.check_complete()


def test_a_requester_that_says_nothing_of_its_items_is_believed() -> None:
    assert not replayed([b"x", b"y", b"z"], digest=0).pending


def test_a_replay_that_differs_is_an_error() -> None:
    with pytest.raises(ReplayError, match="differs from what was delivered") as caught:
        replayed([b"one", b"two", b"four"])
    assert caught.value.items == 3


def test_a_replay_that_ends_early_is_an_error() -> None:
    with pytest.raises(ReplayError, match="ended after 2 of 3 items"):
        replayed(BODIES[:2]).check_complete()


def test_nothing_is_dropped_at_a_start() -> None:
    assert not Replay().pending
