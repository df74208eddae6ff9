from collections.abc import Callable

import pytest

from dialback.queue.pulls import GIVEN_UP, TIMED_OUT, Probe


async def test_a_probe_is_done_when_all_it_wanted_has_come() -> None:
    probe = Probe("high", 2, "inbox.1")
    probe.message("high")
    assert not probe.done.done()
    probe.message("high")
    assert (probe.done.result(), probe.received) == ("", 2)


async def test_a_probe_counts_its_own_lane_only() -> None:
    probe = Probe("high", 1, "inbox.1")
    probe.message("low")
    assert (probe.done.done(), probe.received) == (False, 0)


async def test_a_probe_is_ended_by_its_own_status_once() -> None:
    probe = Probe("high", 2, "inbox.1")
    probe.message("high")
    probe.status("inbox.0", "409")
    assert not probe.done.done()
    probe.status("inbox.1", "404")
    probe.message("high")
    assert probe.done.result() == "404"


@pytest.mark.parametrize(
    ("end", "status"), [(Probe.give_up, GIVEN_UP), (Probe.time_out, TIMED_OUT)]
)
async def test_a_probe_that_is_not_waited_for_ends_with_what_had_come(
    end: Callable[[Probe], None], status: str
) -> None:
    probe = Probe("high", 2, "inbox.1")
    probe.message("high")
    end(probe)
    probe.status("inbox.1", "404")
    assert (probe.done.result(), probe.received) == (status, 1)
