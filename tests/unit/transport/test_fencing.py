import pytest

from dialback.transport import fencing
from dialback.transport.fencing import Serving, Verdict
from dialback.transport.messages import ResumeOffer

SINGLE_USE = Serving(None)


def serving(epoch: int, delivery: int) -> Serving:
    return Serving(ResumeOffer(delivery, epoch))


def judge(dial: ResumeOffer | None, current: Serving | None, delivered: int) -> Verdict:
    """Judge a dial on a stream that is as old as it looks."""
    dialled = current is not None or delivered > 0
    return fencing.judge(dial, current, delivered, dialled=dialled)


@pytest.mark.parametrize(
    ("epoch", "delivery", "verdict"),
    [
        (5, 4, Verdict.SERVES),
        (6, 1, Verdict.SERVES),
        (5, 3, Verdict.OUTRANKED),
        (5, 2, Verdict.OUTRANKED),
        (4, 9, Verdict.OUTRANKED),
    ],
)
@pytest.mark.parametrize("delivered", [0, 7])
def test_while_a_connection_is_open_only_a_higher_rank_serves(
    epoch: int, delivery: int, verdict: Verdict, delivered: int
) -> None:
    assert judge(ResumeOffer(delivery, epoch), serving(5, 3), delivered) is verdict


@pytest.mark.parametrize("delivered", [0, 7])
def test_with_no_connection_open_any_announced_dial_serves(delivered: int) -> None:
    assert judge(ResumeOffer(1, 0), None, delivered) is Verdict.SERVES


@pytest.mark.parametrize("current", [None, SINGLE_USE, serving(5, 3)])
def test_a_dial_that_announces_nothing_is_single_use(current: Serving | None) -> None:
    assert judge(None, current, 0) is Verdict.SERVES
    assert judge(None, current, 1) is Verdict.SPENT


def test_a_stream_that_a_single_use_worker_has_begun_is_nobody_elses() -> None:
    assert judge(ResumeOffer(9, 9), SINGLE_USE, 0) is Verdict.SERVES
    assert judge(ResumeOffer(9, 9), SINGLE_USE, 1) is Verdict.SPENT


@pytest.mark.parametrize(
    ("epoch", "delivery", "delivered", "verdict"),
    [
        (6, 1, 7, Verdict.OUTRANKED),
        (6, 1, 0, Verdict.SERVES),
        (5, 4, 7, Verdict.SERVES),
    ],
    ids=["new consumer", "new consumer, no item yet", "the lease was lost"],
)
def test_a_worker_that_could_only_break_a_stream_off_takes_none_that_may_be_well(
    epoch: int, delivery: int, delivered: int, verdict: Verdict
) -> None:
    dial = ResumeOffer(delivery, epoch, unable=True)
    assert judge(dial, serving(5, 3), delivered) is verdict


def test_a_fresh_dial_serves_a_stream_that_no_worker_has_served() -> None:
    fresh = ResumeOffer(1, 5, fresh=True)
    assert fencing.judge(fresh, None, 0, dialled=False) is Verdict.SERVES


@pytest.mark.parametrize(
    ("current", "delivered"),
    [(None, 0), (None, 7), (SINGLE_USE, 0), (serving(4, 3), 0), (serving(4, 3), 7)],
)
def test_a_fresh_dial_that_would_serve_after_another_is_not_the_first(
    current: Serving | None, delivered: int
) -> None:
    fresh, asking = ResumeOffer(1, 5, fresh=True), ResumeOffer(1, 5)
    assert fencing.judge(fresh, current, delivered, dialled=True) is Verdict.NOT_FIRST
    assert fencing.judge(asking, current, delivered, dialled=True) is Verdict.SERVES


@pytest.mark.parametrize(
    ("current", "delivered", "verdict"),
    [
        (SINGLE_USE, 1, Verdict.SPENT),
        (serving(5, 1), 0, Verdict.OUTRANKED),
        (serving(5, 3), 7, Verdict.OUTRANKED),
    ],
)
def test_a_fresh_dial_that_may_not_serve_is_told_what_any_other_is_told(
    current: Serving, delivered: int, verdict: Verdict
) -> None:
    fresh = ResumeOffer(1, 5, fresh=True)
    assert fencing.judge(fresh, current, delivered, dialled=True) is verdict
