import pytest

from dialback.errors import ConfigError
from dialback.queue.lanes import (
    EMPTY_FOR,
    EmptyLanes,
    LaneSlots,
    check_reserved,
    lane_order,
    parse_reserved,
    room_for,
)

LANES = ["high", "normal", "low"]


def test_every_eighth_pass_goes_in_reverse_order() -> None:
    orders = [lane_order(LANES, number) for number in range(1, 25)]
    assert [number for number, order in enumerate(orders, start=1) if order == LANES[::-1]] == [
        8,
        16,
        24,
    ]
    assert all(order in (LANES, LANES[::-1]) for order in orders)


def test_a_lane_is_empty_for_a_moment_only() -> None:
    lanes = EmptyLanes()
    assert not lanes.just_now("high", 0.0)
    lanes.found("high", 0.0, empty=True)
    assert lanes.just_now("high", EMPTY_FOR / 2)
    assert not lanes.just_now("low", 0.0)
    assert not lanes.just_now("high", EMPTY_FOR)


def test_a_lane_with_a_message_is_not_empty() -> None:
    lanes = EmptyLanes()
    lanes.found("high", 1.0, empty=True)
    lanes.found("high", 1.0, empty=False)
    lanes.found("low", 1.0, empty=False)
    assert not lanes.just_now("high", 1.0)


@pytest.mark.parametrize(
    ("lane", "in_use", "reserved", "room"),
    [
        ("low", {}, {}, 4),
        ("low", {"high": 1, "low": 2}, {}, 1),
        ("high", {}, {"high": 2}, 4),  # its own and the common ones
        ("low", {}, {"high": 2}, 2),  # the common ones only
        ("low", {"low": 2}, {"high": 2}, 0),
        ("high", {"low": 2}, {"high": 2}, 2),
        ("high", {"high": 2}, {"high": 2}, 2),  # its own are used first
        ("low", {"high": 3}, {"high": 2}, 1),
        ("normal", {"high": 3, "low": 1}, {"high": 2}, 0),
        ("normal", {"high": 3}, {"high": 2, "normal": 1}, 1),
        ("low", {"low": 4}, {}, 0),
        ("low", {"low": 5}, {"high": 1}, 0),
    ],
)
def test_a_lane_uses_its_own_slots_and_the_common_ones(
    lane: str, in_use: dict[str, int], reserved: dict[str, int], room: int
) -> None:
    assert room_for(lane, slots=4, in_use=in_use, reserved=reserved) == room


def test_all_lanes_together_never_get_more_than_the_slots() -> None:
    slots = LaneSlots(4, {"high": 1, "normal": 1})
    taken: list[str] = []
    for lane in ["low"] * 4 + ["normal"] * 4 + ["high"] * 4:
        if slots.room(lane) > 0:
            slots.take(lane)
            taken.append(lane)
    assert taken == ["low", "low", "normal", "high"]


def test_a_released_slot_is_the_lanes_that_may_use_it() -> None:
    slots = LaneSlots(2, {"high": 1})
    slots.take("high")
    slots.take("low")
    slots.release("high")
    assert [slots.room(lane) for lane in LANES] == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "reserved"),
    [
        ("", {}),
        ("high=2", {"high": 2}),
        (" high = 2 , normal=1,", {"high": 2, "normal": 1}),
    ],
)
def test_reservations_are_pairs_with_commas(text: str, reserved: dict[str, int]) -> None:
    assert parse_reserved(text) == reserved


@pytest.mark.parametrize("text", ["high", "high=", "high=x", "high=-1", "high=1,high=2", "high=²"])
def test_a_reservation_that_is_not_readable_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not readable; write .* such as high=2,normal=1"):
        parse_reserved(text)


@pytest.mark.parametrize(
    ("reserved", "sentence"),
    [
        ({"urgent": 1}, "there is no lane 'urgent'; the lanes are high, normal, low"),
        ({"high": -1}, "high=-1 is less than 0"),
        ({"high": 4}, "4 of 4 slots would be reserved; at least one must be left"),
        ({"high": 2, "low": 3}, "5 of 4 slots would be reserved"),
    ],
)
def test_a_reservation_that_cannot_be_kept_is_refused(
    reserved: dict[str, int], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_reserved(reserved, slots=4, lanes=LANES)


@pytest.mark.parametrize("reserved", [{}, {"high": 3}, {"high": 0, "low": 1}])
def test_a_reservation_that_can_be_kept_passes(reserved: dict[str, int]) -> None:
    check_reserved(reserved, slots=4, lanes=LANES)


def test_one_slot_needs_no_reservation() -> None:
    check_reserved({}, slots=1, lanes=LANES)
