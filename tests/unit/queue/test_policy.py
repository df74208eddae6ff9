import pytest

from dialback.outcomes import Finished, HandedBack, Outcome, Superseded
from dialback.queue.policy import (
    Ack,
    DeadLetter,
    Disposition,
    Leave,
    Nak,
    RetryPolicy,
    disposition_for,
    seconds_left,
)

# What becomes of the message at the last attempt, nothing discarded.
LAST_ATTEMPT: dict[Outcome, Disposition] = {
    Outcome.COMPLETED: Ack(),
    Outcome.STOPPED: Ack(),
    Outcome.KILLED: Ack(),
    Outcome.CLIENT_GONE: Ack(),
    Outcome.NETWORK_FAILED: Ack(),
    Outcome.REQUESTER_GONE: DeadLetter(),
    Outcome.REQUESTER_UNREACHABLE: DeadLetter(),
    Outcome.ENGINE_REFUSED: Ack(),
    Outcome.ENGINE_FAILED: Ack(),
    Outcome.INVALID: DeadLetter(),
    Outcome.UNSUPPORTED: DeadLetter(),
    Outcome.EXPIRED: Ack(),
    Outcome.CANCELLED: Ack(),
    Outcome.INTERRUPTED: Ack(),
    Outcome.POISON: DeadLetter(),
}


def decide(
    outcome: Outcome,
    attempts: int,
    policy: RetryPolicy,
    jitter: float = 1.0,
    left: float | None = None,
) -> Disposition:
    ending = Finished(outcome=outcome, request_id="r")
    return disposition_for(
        ending, attempts=attempts, left=left, policy=policy, jitter=lambda: jitter
    )


def test_every_outcome_has_its_row() -> None:
    assert set(LAST_ATTEMPT) == set(Outcome)


@pytest.mark.parametrize("attempts", [4, 5, 6, 100_000])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_at_the_last_attempt_every_outcome_is_final(outcome: Outcome, attempts: int) -> None:
    assert decide(outcome, attempts, RetryPolicy()) == LAST_ATTEMPT[outcome]


@pytest.mark.parametrize("attempts", [0, 1, 2, 3])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_before_it_only_an_unreachable_requester_is_tried_again(
    outcome: Outcome, attempts: int
) -> None:
    expected = LAST_ATTEMPT[outcome]
    if outcome is Outcome.REQUESTER_UNREACHABLE:
        expected = Nak(5.0 * 2**attempts, retry=True)
    assert decide(outcome, attempts, RetryPolicy()) == expected


@pytest.mark.parametrize("attempts", [0, 3, 4, 100_000])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_discarding_changes_nothing_but_a_gone_requester(outcome: Outcome, attempts: int) -> None:
    expected = decide(outcome, attempts, RetryPolicy())
    if outcome is Outcome.REQUESTER_GONE:
        expected = Ack()
    assert decide(outcome, attempts, RetryPolicy(discard_gone=True)) == expected


@pytest.mark.parametrize("most", [0, 1])
def test_one_attempt_means_no_retry(most: int) -> None:
    policy = RetryPolicy(max_attempts=most)
    assert decide(Outcome.REQUESTER_UNREACHABLE, 0, policy) == DeadLetter()


@pytest.mark.parametrize(
    ("attempts", "delay"),
    [(0, 5.0), (1, 10.0), (2, 20.0), (7, 640.0), (8, 900.0), (9, 900.0), (99_998, 900.0)],
)
def test_delays_double_up_to_their_cap(attempts: int, delay: float) -> None:
    policy = RetryPolicy(max_attempts=100_000)
    assert decide(Outcome.REQUESTER_UNREACHABLE, attempts, policy) == Nak(delay, retry=True)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (None, Nak(5.0, retry=True)),
        (1000.0, Nak(5.0, retry=True)),
        (10.0, Nak(5.0, retry=True)),
        (8.0, Nak(4.0, retry=True)),
        (1.1, Nak(0.55, retry=True)),
        (1.0, DeadLetter()),
        (0.0, DeadLetter()),
        (-5.0, DeadLetter()),
    ],
)
def test_a_retry_comes_before_the_deadline_or_not_at_all(
    left: float | None, expected: Disposition
) -> None:
    assert decide(Outcome.REQUESTER_UNREACHABLE, 0, RetryPolicy(), left=left) == expected


@pytest.mark.parametrize("outcome", list(Outcome))
def test_with_its_deadline_over_every_outcome_is_final(outcome: Outcome) -> None:
    assert decide(outcome, 0, RetryPolicy(), left=0.0) == LAST_ATTEMPT[outcome]


@pytest.mark.parametrize(("jitter", "delay"), [(0.8, 8.0), (1.0, 10.0), (1.2, 12.0)])
def test_jitter_spreads_the_capped_delay(jitter: float, delay: float) -> None:
    policy = RetryPolicy(retry_delay=50.0, max_retry_delay=10.0)
    assert decide(Outcome.REQUESTER_UNREACHABLE, 0, policy, jitter) == Nak(delay, retry=True)


@pytest.mark.parametrize("left", [None, 0.0, 100.0])
@pytest.mark.parametrize("attempts", [0, 4, 100])
def test_handed_back_goes_back_after_its_delay_and_is_no_attempt(
    attempts: int, left: float | None
) -> None:
    for delay in (0.0, 0.3):
        ending = HandedBack(request_id="r", reason="drain", delay=delay)
        decision = disposition_for(
            ending, attempts=attempts, left=left, policy=RetryPolicy(), jitter=lambda: 1.2
        )
        assert decision == Nak(delay, retry=False)


@pytest.mark.parametrize("attempts", [0, 4, 100])
def test_superseded_settles_nothing(attempts: int) -> None:
    ending = Superseded(request_id="r", reason="lease lost")
    decision = disposition_for(
        ending, attempts=attempts, left=0.0, policy=RetryPolicy(), jitter=lambda: 1.0
    )
    assert decision == Leave()


@pytest.mark.parametrize(
    ("deadline", "start_by", "left"),
    [
        ("", "", None),
        ("15000000000", "", 5.0),
        ("", "15000000000", 5.0),
        ("15000000000", "12500000000", 2.5),
        ("12500000000", "15000000000", 2.5),
        ("9000000000", "", -1.0),
        ("", "9000000000", None),  # the first item may have come
        ("15000000000", "9000000000", 5.0),
        ("soon", "1" * 20, None),
        ("٣", "-1", None),
    ],
)
def test_the_earlier_limit_counts_and_a_passed_one_for_the_first_item_does_not(
    deadline: str, start_by: str, left: float | None
) -> None:
    headers = {"Dialback-Deadline": deadline, "Dialback-Start-By": start_by}
    assert seconds_left(headers, 10_000_000_000) == left


@pytest.mark.parametrize(("hand_backs", "delay"), [(0, 0.2), (1, 0.4), (5, 6.4), (50, 30.0)])
def test_deliveries_that_bring_nothing_come_again_ever_later(hand_backs: int, delay: float) -> None:
    ending = HandedBack(request_id="r", reason="lost", delay=0.2, fruitless=True)
    decision = disposition_for(
        ending,
        attempts=0,
        left=None,
        policy=RetryPolicy(),
        jitter=lambda: 1.0,
        hand_backs=hand_backs,
    )
    assert decision == Nak(delay, retry=False)
