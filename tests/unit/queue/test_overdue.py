import pytest

from dialback.queue.overdue import Watch, overdue_at

NS = 1_000_000_000


@pytest.mark.parametrize(
    ("headers", "limit", "expected"),
    [
        ({}, 0.0, None),
        ({}, 2.5, 100 + 2_500_000_000),
        ({"Dialback-Deadline": "7"}, 0.0, 7),
        ({"Dialback-Start-By": "5", "Dialback-Deadline": "7"}, 0.0, 5),
        ({"Dialback-Start-By": "9", "Dialback-Deadline": "7"}, 0.0, 7),
        ({"Dialback-Deadline": "7"}, 2.5, 7),
        ({"Dialback-Deadline": "soon"}, 0.0, None),
        ({"Dialback-Deadline": "-7"}, 0.0, None),
        ({"Dialback-Deadline": "٣"}, 0.0, None),
        ({"Dialback-Deadline": "9" * 20}, 1.0, 100 + NS),
    ],
)
def test_a_request_is_overdue_at_its_earlier_deadline_or_after_the_limit(
    headers: dict[str, str], limit: float, expected: int | None
) -> None:
    assert overdue_at(headers, 100, unserved_limit=limit) == expected


def test_requests_are_due_in_the_order_of_their_deadlines_each_once() -> None:
    watch = Watch()
    for sequence, at in ((1, 30), (2, 10), (3, 20), (4, None), (5, 99)):
        watch.add(sequence, at)
    assert watch.seen == 5
    assert watch.take_due(9, delivered=0, limit=10) == []
    assert watch.take_due(30, delivered=0, limit=2) == [2, 3]
    assert watch.take_due(30, delivered=0, limit=2) == [1]
    assert watch.take_due(30, delivered=0, limit=2) == []
    assert watch.watched == 1


def test_what_a_worker_has_or_had_is_never_due() -> None:
    watch = Watch()
    for sequence in range(1, 6):
        watch.add(sequence, 10)
    assert watch.take_due(10, delivered=3, limit=10) == [4, 5]


def test_what_is_delivered_before_it_was_looked_at_is_skipped() -> None:
    watch = Watch()
    watch.start_after(7)
    assert watch.seen == 7
    watch.start_after(3)
    assert watch.seen == 7


def test_a_full_watch_has_room_again_when_requests_were_delivered() -> None:
    watch = Watch(capacity=3)
    for sequence in (1, 2, 3):
        watch.add(sequence, 100 - sequence)
    assert watch.room == 0
    watch.start_after(2)
    assert (watch.room, watch.watched) == (2, 1)
    assert watch.take_due(100, delivered=2, limit=10) == [3]
