import pytest

from dialback.worker_health import PullHealth


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("dialback.worker_health.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def watch(
    pulls: PullHealth,
    clock: Clock,
    seconds: int,
    *,
    heard: float = 1.0,
    answered: float = 1.0,
    pulling: bool = True,
) -> None:
    for _ in range(seconds):
        clock.now += 1
        pulls.look(heard=heard, answered=answered, pulling=pulling)


def test_before_the_first_answer_it_is_not_ready(clock: Clock) -> None:
    pulls = PullHealth(120)
    assert pulls.problem == "no pull was answered yet"
    watch(pulls, clock, 1)
    assert pulls.problem is None


def test_unanswered_for_half_the_limit_is_not_ready_and_silent_for_all_of_it_is_dead(
    clock: Clock,
) -> None:
    pulls = PullHealth(120)
    watch(pulls, clock, 61)
    assert (pulls.problem, pulls.dead) == (None, False)
    watch(pulls, clock, 1)
    assert (pulls.problem, pulls.dead) == ("pulls are stale", False)
    watch(pulls, clock, 59)
    assert not pulls.dead
    watch(pulls, clock, 1)
    assert pulls.dead


def test_error_statuses_cost_readiness_and_nothing_more(clock: Clock) -> None:
    pulls = PullHealth(120)
    for second in range(1000):
        watch(pulls, clock, 1, heard=float(second), answered=1.0)
    assert (pulls.problem, pulls.dead) == ("pulls are stale", False)


def test_without_a_connection_or_a_free_slot_there_is_no_limit(clock: Clock) -> None:
    pulls = PullHealth(120)
    watch(pulls, clock, 1000, pulling=False)
    assert (pulls.problem, pulls.dead) == (None, False)
    watch(pulls, clock, 60)
    assert (pulls.problem, pulls.dead) == (None, False)
