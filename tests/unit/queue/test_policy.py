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


def decide(outcome: Outcome, number: int, policy: RetryPolicy, jitter: float = 1.0) -> Disposition:
    ending = Finished(outcome=outcome, request_id="r")
    return disposition_for(ending, number=number, policy=policy, jitter=lambda: jitter)


def test_every_outcome_has_its_row() -> None:
    assert set(LAST_ATTEMPT) == set(Outcome)


@pytest.mark.parametrize("number", [5, 6, 7, 100_000])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_at_the_last_attempt_every_outcome_is_final(outcome: Outcome, number: int) -> None:
    assert decide(outcome, number, RetryPolicy()) == LAST_ATTEMPT[outcome]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_before_it_only_an_unreachable_requester_is_tried_again(
    outcome: Outcome, number: int
) -> None:
    expected = LAST_ATTEMPT[outcome]
    if outcome is Outcome.REQUESTER_UNREACHABLE:
        expected = Nak(5.0 * 2 ** (number - 1), retry=True)
    assert decide(outcome, number, RetryPolicy()) == expected


@pytest.mark.parametrize("number", [1, 4, 5, 100_000])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_discarding_changes_nothing_but_a_gone_requester(outcome: Outcome, number: int) -> None:
    expected = decide(outcome, number, RetryPolicy())
    if outcome is Outcome.REQUESTER_GONE:
        expected = Ack()
    assert decide(outcome, number, RetryPolicy(discard_gone=True)) == expected


@pytest.mark.parametrize("attempts", [0, 1])
def test_one_attempt_means_no_retry(attempts: int) -> None:
    policy = RetryPolicy(max_attempts=attempts)
    assert decide(Outcome.REQUESTER_UNREACHABLE, 1, policy) == DeadLetter()


@pytest.mark.parametrize(
    ("number", "delay"),
    [(1, 5.0), (2, 10.0), (3, 20.0), (8, 640.0), (9, 900.0), (10, 900.0), (99_999, 900.0)],
)
def test_delays_double_up_to_their_cap(number: int, delay: float) -> None:
    policy = RetryPolicy(max_attempts=100_000)
    assert decide(Outcome.REQUESTER_UNREACHABLE, number, policy) == Nak(delay, retry=True)


@pytest.mark.parametrize(("jitter", "delay"), [(0.8, 8.0), (1.0, 10.0), (1.2, 12.0)])
def test_jitter_spreads_the_capped_delay(jitter: float, delay: float) -> None:
    policy = RetryPolicy(retry_delay=50.0, max_retry_delay=10.0)
    assert decide(Outcome.REQUESTER_UNREACHABLE, 1, policy, jitter) == Nak(delay, retry=True)


@pytest.mark.parametrize("number", [1, 5, 100])
def test_handed_back_goes_back_at_once_and_is_no_attempt(number: int) -> None:
    ending = HandedBack(request_id="r", reason="drain")
    decision = disposition_for(ending, number=number, policy=RetryPolicy(), jitter=lambda: 1.2)
    assert decision == Nak(0.0, retry=False)


@pytest.mark.parametrize("number", [1, 5, 100])
def test_superseded_settles_nothing(number: int) -> None:
    ending = Superseded(request_id="r", reason="lease lost")
    decision = disposition_for(ending, number=number, policy=RetryPolicy(), jitter=lambda: 1.0)
    assert decision == Leave()
