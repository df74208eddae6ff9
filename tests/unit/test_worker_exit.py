import pytest

from dialback import WorkerExit
from dialback.queue.consumer import Drained
from dialback.worker_exit import exit_for

CLEAN, INTERRUPTED, ABANDONED = Drained(), Drained(interrupted=1), Drained(abandoned=1)


@pytest.mark.parametrize(
    ("drained", "how", "code"),
    [
        (CLEAN, {}, 0),
        (CLEAN, {"hurried": True}, 0),
        (INTERRUPTED, {}, 75),
        (ABANDONED, {}, 75),
        (INTERRUPTED, {"hurried": True}, 143),
        (CLEAN, {"pulls_dead": True}, 70),
        (INTERRUPTED, {"pulls_dead": True}, 70),
        (INTERRUPTED, {"pulls_dead": True, "hurried": True}, 70),
        (CLEAN, {"closed": True, "hurried": True}, 69),
        (ABANDONED, {"closed": True, "pulls_dead": True}, 69),
    ],
)
def test_why_it_ended_comes_before_what_that_did_to_requests(
    drained: Drained, how: dict[str, bool], code: int
) -> None:
    assert exit_for(drained, **how) == WorkerExit(code)
