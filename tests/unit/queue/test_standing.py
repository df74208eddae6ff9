from collections.abc import Sequence

import pytest

from dialback.queue.standing import Standing

LANES = ("high", "normal", "low")
MOST = 64


def standing(lanes: Sequence[str] = LANES) -> Standing:
    """Of three lanes, whose inboxes are ``inbox.high`` and so on."""
    return Standing({lane: f"inbox.{lane}" for lane in lanes})


def room_for_all(room: int) -> dict[str, int]:
    """So many slots for each lane."""
    return dict.fromkeys(LANES, room)


def topped_up(pulls: Standing, room: int, most: int = MOST) -> list[int] | None:
    """Ask for what is wanted of each lane; return that."""
    more = pulls.top_up(room_for_all(room), most, 0.0)
    return None if more is None else [more.get(lane, 0) for lane in LANES]


@pytest.mark.parametrize("room", [1, 2, 3, 100])
def test_each_lane_is_asked_for_one_message_that_a_frozen_worker_would_keep(room: int) -> None:
    assert topped_up(standing(), room) == [1, 1, 1]


def test_a_busy_worker_asks_lanes_that_bring_something_for_a_quarter_of_what_it_has() -> None:
    pulls = standing()
    rooms = room_for_all(1000)
    assert pulls.top_up(rooms, MOST, 0.0, in_hand=20) == room_for_all(1)
    pulls.message("normal", 0, 1.0)
    assert not pulls.stocked
    assert pulls.top_up(rooms, MOST, 0.0, in_hand=20) == {"normal": 5}
    for _ in range(2):
        pulls.message("normal", 0, 1.0)
        assert pulls.stocked
        assert pulls.top_up(rooms, MOST, 0.0, in_hand=20) == {}
    pulls.message("normal", 0, 1.0)
    assert not pulls.stocked
    assert pulls.top_up(rooms, MOST, 0.0, in_hand=20) == {"normal": 3}


def test_a_worker_that_is_not_busy_any_more_asks_for_one_message_again() -> None:
    pulls = standing()
    rooms = room_for_all(1000)
    pulls.top_up(rooms, MOST, 0.0)
    pulls.message("normal", 0, 1.0)
    assert pulls.top_up(rooms, MOST, 0.0, in_hand=20) == {"normal": 5}
    for _ in range(4):
        pulls.message("normal", 0, 1.0)
        assert pulls.top_up(rooms, MOST, 0.0, in_hand=3) == {}
    pulls.message("normal", 0, 1.0)
    assert pulls.top_up(rooms, MOST, 0.0, in_hand=3) == {"normal": 1}


def test_no_pull_is_larger_than_the_consumer_allows() -> None:
    pulls = standing()
    topped_up(pulls, 1000)
    pulls.message("normal", 100, 1.0)
    assert topped_up(pulls, 1000, most=8) == [0, 8, 0]


def test_a_lane_is_topped_up_when_its_pull_is_used() -> None:
    pulls, room = standing(), 24
    topped_up(pulls, room)
    pulls.message("normal", 0, 1.0)
    assert topped_up(pulls, room) == [0, 1, 0]
    assert topped_up(pulls, room) == [0, 0, 0]


def test_what_waits_behind_a_message_is_asked_for_if_there_are_slots() -> None:
    pulls = standing()
    topped_up(pulls, 24)
    pulls.message("normal", 10, 1.0)
    assert topped_up(pulls, 23) == [0, 10, 0]
    assert topped_up(pulls, 23) == [0, 0, 0]


def test_all_lanes_together_are_asked_for_no_more_than_the_slots() -> None:
    pulls, room, outstanding = standing(), 30, 0
    for number in range(60):
        more = topped_up(pulls, room)
        if more is None:
            break
        outstanding += sum(more)
        assert outstanding <= room
        pulls.message("low" if number % 3 else "normal", number % 5, 1.0)
        outstanding -= 1
        room -= 1
    assert room >= 1


def test_with_few_slots_each_lane_is_still_asked_for_one() -> None:
    pulls = standing()
    assert topped_up(pulls, 2) == [1, 1, 1]
    pulls.message("low", 0, 1.0)
    assert topped_up(pulls, 1) == [0, 0, 1]


def test_a_lane_with_more_than_there_is_room_for_is_to_be_asked_in_order() -> None:
    pulls = standing()
    topped_up(pulls, 2)
    pulls.message("low", 5, 1.0)
    assert topped_up(pulls, 1) is None
    pulls.found_empty("low")
    assert topped_up(pulls, 1) == [0, 0, 1]


def test_other_lanes_that_hold_all_the_room_do_not_keep_a_lane_from_one_pull() -> None:
    pulls = standing()
    rooms = room_for_all(6)
    pulls.top_up(rooms, MOST, 0.0)
    pulls.message("normal", 0, 1.0)
    assert pulls.top_up(rooms, MOST, 0.0, in_hand=40) == {"normal": 4}  # two are the others'
    for lane in ("high", "low"):
        pulls.message(lane, 0, 1.0)
        assert pulls.top_up(room_for_all(4), MOST, 0.0, in_hand=42) == {lane: 1}


def test_a_lane_without_a_slot_is_not_asked_and_its_pull_is_in_the_way() -> None:
    pulls = standing()
    rooms = {"high": 1, "normal": 0, "low": 1}
    assert pulls.top_up(rooms, MOST, 0.0) == {"high": 1, "low": 1}
    assert not pulls.in_the_way(rooms)
    assert pulls.in_the_way({"high": 1, "normal": 0, "low": 0})


def test_empty_lanes_are_those_whose_pull_still_stands() -> None:
    pulls = standing()
    topped_up(pulls, 1)
    pulls.message("normal", 3, 1.0)
    pulls.message("elsewhere", 0, 1.0)
    assert sorted(pulls.empty) == ["high", "low"]
    assert not pulls.under_way


def test_messages_behind_one_that_came_are_under_way_as_far_as_they_were_asked_for() -> None:
    pulls = standing()
    topped_up(pulls, 24)
    pulls.message("normal", 10, 1.0)
    topped_up(pulls, 23)
    assert pulls.under_way
    assert sorted(pulls.empty) == ["high", "low"]


def test_a_late_message_of_earlier_pulls_is_not_counted_below_nothing() -> None:
    pulls = standing()
    pulls.message("low", 0, 1.0)
    assert topped_up(pulls, 3) == [1, 1, 1]


def test_only_a_strange_status_is_a_failure_and_it_names_its_lane() -> None:
    pulls = standing()
    assert pulls.status("inbox.high", "100", None, 1.0)
    assert pulls.status("inbox.high", "408", 1, 1.0)
    assert not pulls.status("inbox.9", "409", None, 1.0)
    assert pulls.failed is None
    assert not pulls.lost
    pulls.status("inbox.low", "409", None, 1.0)
    pulls.status("inbox.high", "503", None, 1.0)
    assert pulls.failed == ("low", "409")


def test_a_pull_that_ends_gives_back_what_it_has_not_brought() -> None:
    pulls, rooms = standing(), room_for_all(1000)
    pulls.top_up(rooms, MOST, 0.0)
    pulls.message("normal", 0, 1.0)
    assert pulls.top_up(rooms, MOST, 0.0, in_hand=20) == {"normal": 5}
    pulls.message("normal", 0, 1.0)
    assert pulls.status("inbox.normal", "408", 4, 3.0)
    assert sorted(pulls.empty) == ["high", "low"]
    # It brought less than it was asked for: one will do.
    assert pulls.top_up(rooms, MOST, 3.0, in_hand=20) == {"normal": 1}


def test_the_pulls_of_a_lane_end_one_by_one() -> None:
    pulls, rooms = standing(), room_for_all(1000)
    pulls.top_up(rooms, MOST, 0.0)
    pulls.message("normal", 0, 1.0)
    pulls.top_up(rooms, MOST, 0.0, in_hand=40)
    for _ in range(5):
        pulls.message("normal", 0, 1.0)
    assert pulls.top_up(rooms, MOST, 1.0, in_hand=40) == {"normal": 5}
    pulls.status("inbox.normal", "408", 5, 3.0)
    assert "normal" in pulls.empty
    pulls.status("inbox.normal", "408", 7, 4.0)  # more than is known of: not below nothing
    assert pulls.top_up(rooms, MOST, 4.0) == {"normal": 1}


def test_a_pull_that_ends_without_a_number_leaves_the_credit_unknown() -> None:
    pulls = standing()
    topped_up(pulls, 3)
    assert pulls.status("inbox.high", "408", None, 1.0)
    assert pulls.lost


@pytest.mark.parametrize("quiet", ["high", "low"])
def test_one_lanes_heartbeats_do_not_cover_anothers_silence(quiet: str) -> None:
    pulls = standing(("high", "low"))
    pulls.top_up({"high": 9, "low": 9}, MOST, 0.0)
    for lane in ("high", "low"):
        if lane != quiet:
            pulls.status(f"inbox.{lane}", "100", None, 7.0)
    assert pulls.silence(8.0) == 8.0
    pulls.status(f"inbox.{quiet}", "100", None, 7.5)
    assert pulls.silence(8.0) == 1.0


def test_a_lane_on_which_nothing_stands_is_not_missed() -> None:
    pulls = standing()
    assert pulls.silence(1000.0) == 0.0
    topped_up(pulls, 3)
    for lane in ("high", "low"):
        pulls.status(f"inbox.{lane}", "100", None, 7.0)
    pulls.message("normal", 0, 1.0)
    assert pulls.silence(8.0) == 1.0
    pulls.top_up(room_for_all(3), MOST, 100.0)
    pulls.status("inbox.high", "100", None, 104.0)
    pulls.status("inbox.low", "100", None, 104.0)
    assert pulls.silence(104.0) == 4.0
