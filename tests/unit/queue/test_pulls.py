import pytest

from dialback.queue.pulls import Linger, Probe


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


def test_only_a_strange_status_is_a_failure_and_it_names_its_lane() -> None:
    linger = Linger({"inbox.1": "high", "inbox.2": "low"}, 0.0)
    assert linger.status("inbox.1", "100", 1.0)
    assert not linger.status("inbox.1", "408", 1.0)
    assert linger.failed is None
    linger.status("inbox.9", "409", 1.0)
    assert linger.failed is None
    linger.status("inbox.2", "409", 1.0)
    linger.status("inbox.1", "503", 1.0)
    assert linger.failed == ("low", "409")


@pytest.mark.parametrize("quiet", ["inbox.1", "inbox.2"])
def test_one_lanes_heartbeats_do_not_cover_anothers_silence(quiet: str) -> None:
    linger = Linger({"inbox.1": "high", "inbox.2": "low"}, 0.0)
    for reply in ("inbox.1", "inbox.2"):
        if reply != quiet:
            linger.status(reply, "100", 7.0)
    assert linger.silence(8.0) == 8.0
    linger.status(quiet, "100", 7.5)
    assert linger.silence(8.0) == 1.0


def test_with_no_lane_to_wait_on_nothing_is_missing() -> None:
    assert Linger({}, 0.0).silence(1000.0) == 0
