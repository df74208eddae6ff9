from collections.abc import Callable, Iterable
from itertools import cycle, islice, repeat

import pytest

from dialback.transport.pacing import Pacing

MS = 0.001


class Stream:
    """A stream in a loop whose time is made up."""

    def __init__(self) -> None:
        self.pacing = Pacing()
        self.now = 100.0
        self.joined: list[int] = []  # writes in each flush
        self.waits: list[float] = []  # seconds from the first of them to the flush
        self.at_once: list[bool] = []  # whether the first of them does not wait for it
        self.turn = 0
        self._began = 0.0
        self._due: float | None = None
        self._writes = 0

    def write(self) -> None:
        if not self._writes:
            self._began, self._due = self.now, None
            self.at_once.append(self.pacing.begin(self.now, self.turn))
        self._writes += 1

    def end_turn(self) -> None:
        self.turn += 1  # others write in each
        if not self._writes:
            return
        if self._due is None:
            self._due = self.now + self.pacing.turned(self.now)
        if self.now >= self._due:
            self.flush()

    def flush(self) -> None:
        self.pacing.end(self.now, self._writes, self.turn)
        self.joined.append(self._writes)
        self.waits.append(self.now - self._began)
        self._writes = 0

    def in_busy_turns(self, turns: Iterable[float], place: float = 0.4) -> None:
        """Write once in each turn, when that part of it is over."""
        for seconds in turns:
            self.now += place * seconds
            self.write()
            self.now += (1 - place) * seconds
            self.end_turn()

    def in_an_idle_loop(self, every: float, number: int) -> None:
        """Write so many times, with little else to do in between."""
        for _ in range(number):
            then = self.now + every
            self.write()
            self.now += 0.05 * MS
            self.end_turn()
            if self._writes and self._due is not None and self._due < then:
                self.now = self._due
                self.flush()
            self.now = then

    def without_awaiting(self, every: float, number: int) -> list[float]:
        """Write so many times; let the loop turn when it should; return how long it was held."""
        held, turned = list[float](), self.now
        for _ in range(number):
            self.now += every
            self.write()
            if self.now > self.pacing.breathe_at:
                self.flush()
                held.append(self.now - turned)
                turned = self.now
        return held


def uneven(turn: float, number: int) -> Iterable[float]:
    return islice(cycle((turn, 0.7 * turn, 1.2 * turn, 1.1 * turn, turn)), number)


def hot_stream(turn: float = 30 * MS) -> Stream:
    stream = Stream()
    stream.in_busy_turns(repeat(turn, 7))
    assert stream.joined == [1, 1, 1, 1, 3]
    return stream


def test_the_first_writes_of_a_stream_leave_at_the_end_of_their_turn() -> None:
    stream = Stream()
    stream.in_busy_turns(repeat(0.1 * MS, 50))
    assert stream.joined[:4] == [1, 1, 1, 1]
    assert min(stream.joined[4:]) >= 20


def test_a_stream_that_pauses_is_not_hot_any_more() -> None:
    stream = hot_stream()
    stream.now += 60 * MS
    stream.joined.clear()
    stream.in_busy_turns(repeat(30 * MS, 7))
    assert stream.joined == [1, 1, 1, 1, 3]


@pytest.mark.parametrize("place", [0.1, 0.4])
@pytest.mark.parametrize(
    ("turn", "least"), [(0.1, 20), (0.5, 6), (1, 6), (2, 6), (5, 6), (10, 5), (20, 3)]
)
def test_in_a_busy_loop_a_hot_stream_leaves_with_several_of_its_writes_at_a_time(
    turn: float, least: float, place: float
) -> None:
    stream = Stream()
    stream.in_busy_turns(uneven(turn * MS, 1000), place)
    joined = stream.joined[4:]
    assert sum(joined) / len(joined) >= least
    assert max(stream.waits) <= (50 + 1.2 * turn) * MS


@pytest.mark.parametrize("every", [1, 1.5, 3, 5, 10, 20, 25, 30, 35, 45])
def test_when_the_loop_is_idle_again_a_hot_stream_waits_no_longer_than_2_ms(every: float) -> None:
    stream = hot_stream()
    stream.waits.clear()
    stream.in_an_idle_loop(every * MS, 100)
    assert max(stream.waits) <= 2.001 * MS


def test_when_the_loop_is_idle_again_a_stream_that_was_hot_soon_leaves_at_the_end_of_a_turn() -> (
    None
):
    stream = hot_stream()
    stream.in_an_idle_loop(25 * MS, 3)
    stream.waits.clear()
    stream.in_an_idle_loop(25 * MS, 100)
    assert max(stream.waits) <= 0.051 * MS


@pytest.mark.parametrize("every", [0.02, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("new_stream", [Stream, hot_stream])
def test_a_writer_that_does_not_await_is_not_given_more_time_because_its_stream_is_hot(
    new_stream: Callable[[], Stream], every: float
) -> None:
    held = new_stream().without_awaiting(every * MS, 2000)
    assert max(held) <= (2 + 2.1 * every) * MS


def test_a_lone_write_leaves_at_once_when_the_one_before_was_alone() -> None:
    stream = Stream()
    stream.in_an_idle_loop(20 * MS, 40)
    assert stream.joined == [1] * 40
    assert stream.at_once == [False] + [True] * 39


@pytest.mark.parametrize("writes", [2, 5])
def test_writes_of_one_turn_leave_together_also_when_turns_are_far_apart(writes: int) -> None:
    stream = Stream()
    for _ in range(10):
        stream.now += 20 * MS
        for _ in range(writes):
            stream.now += 0.01 * MS
            stream.write()
        stream.end_turn()
    assert stream.joined == [writes] * 10
    assert not any(stream.at_once)


def test_only_the_first_pair_after_lone_writes_is_torn_apart() -> None:
    stream = Stream()
    for writes in (1, 1, 1, 2, 2, 2, 1, 1):
        stream.now += 20 * MS
        for _ in range(writes):
            stream.now += 0.01 * MS
            stream.write()
        stream.end_turn()
    assert stream.joined == [1, 1, 1, 2, 2, 2, 1, 1]
    assert stream.at_once == [False, True, True, True, False, False, False, True]


@pytest.mark.parametrize("turn", [0.1, 1, 5, 20])
def test_a_stream_of_lone_writes_becomes_hot_when_its_loop_is_busy(turn: float) -> None:
    stream = Stream()
    stream.in_an_idle_loop(50 * MS, 10)
    assert stream.at_once[-1]
    stream.joined.clear()
    stream.in_busy_turns(repeat(turn * MS, 1000))
    assert stream.joined[:4] == [1, 1, 1, 1]
    assert max(stream.joined) >= 3
    assert not any(stream.at_once[-10:])


def test_a_stream_that_pauses_for_as_long_as_a_turn_of_a_busy_loop_is_not_hot() -> None:
    """It writes in each second turn only; its times alone would look like those of each."""
    stream = Stream()
    for _ in range(50):
        stream.in_busy_turns(repeat(12 * MS, 1), place=0.05)
        stream.turn += 1
    assert stream.joined == [1] * 50
    assert stream.at_once[1:] == [True] * 49
