import pytest

from dialback.restarts import GiveUp, Restart, Restarts, code_when_told, exit_code_of, worst


def restarts(processes: int = 1) -> Restarts:
    return Restarts(processes, jitter=lambda: 1.0)


def test_the_pauses_double_up_to_half_a_minute() -> None:
    history = restarts()
    decisions = [history.died(0, code=137, lived=1.0, ready=True) for _ in range(8)]
    assert decisions == [Restart(d) for d in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)]


def test_a_minute_of_life_starts_the_pauses_anew() -> None:
    history = restarts()
    for _ in range(4):
        history.died(0, code=137, lived=59.0, ready=True)
    assert history.died(0, code=137, lived=60.0, ready=True) == Restart(0.5)
    assert history.died(0, code=137, lived=1.0, ready=True) == Restart(1.0)


def test_each_place_has_its_own_pauses() -> None:
    history = restarts(2)
    history.died(0, code=137, lived=1.0, ready=True)
    assert history.died(1, code=137, lived=1.0, ready=True) == Restart(0.5)


def test_the_pauses_are_spread() -> None:
    history = Restarts(1)
    delays = {history.died(0, code=1, lived=99.0, ready=True) for _ in range(5)}
    assert len(delays) > 1
    assert all(isinstance(one, Restart) and 0.4 <= one.delay <= 0.6 for one in delays)


def test_an_end_with_0_that_nobody_asked_for_is_a_death() -> None:
    assert restarts().died(0, code=0, lived=1.0, ready=True) == Restart(0.5)


@pytest.mark.parametrize("code", [2, 4, 77])
def test_what_no_restart_can_mend_is_given_up(code: int) -> None:
    decision = restarts(4).died(3, code=code, lived=0.3, ready=False)
    assert isinstance(decision, GiveUp)
    assert f"ended with {code}" in decision.why


def test_an_engine_that_ends_its_process_with_2_is_restarted() -> None:
    assert restarts().died(0, code=2, lived=5.0, ready=True) == Restart(0.5)


def test_five_fruitless_starts_of_every_process_are_enough() -> None:
    history = restarts(2)
    for _ in range(7):
        assert isinstance(history.died(0, code=1, lived=0.1, ready=False), Restart)
    for _ in range(4):
        assert isinstance(history.died(1, code=1, lived=0.1, ready=False), Restart)
    assert isinstance(history.died(1, code=1, lived=0.1, ready=False), GiveUp)


def test_one_that_became_ready_keeps_all_going() -> None:
    history = restarts(2)
    history.died(1, code=1, lived=0.1, ready=True)
    for _ in range(9):
        assert isinstance(history.died(0, code=1, lived=0.1, ready=False), Restart)


def test_a_killed_process_has_a_shell_s_exit_code() -> None:
    assert [exit_code_of(code) for code in (0, 75, -9, -11)] == [0, 75, 137, 139]


@pytest.mark.parametrize("returncode", [0, 1, 75, 143, -9, -15])
def test_a_process_that_never_pulled_has_dropped_nothing(returncode: int) -> None:
    assert code_when_told(returncode, ready=False, held=0) == 0


@pytest.mark.parametrize(
    ("returncode", "held", "code"),
    [(0, 0, 0), (75, 0, 75), (143, 0, 143), (-15, 0, 0), (-15, 1, 143), (-9, 0, 137), (-9, 2, 137)],
)
def test_a_second_signal_at_the_door_interrupts_nothing(
    returncode: int, held: int, code: int
) -> None:
    assert code_when_told(returncode, ready=True, held=held) == code


def test_the_worst_exit_code_counts() -> None:
    in_order = [0, 75, 143, 1, 69, 70, 137]
    for rank, code in enumerate(in_order):
        assert worst(in_order[: rank + 1]) == code
    assert worst([75, 0, 0]) == 75
    assert worst([]) == 0
