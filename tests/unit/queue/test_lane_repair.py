import asyncio
import logging

import pytest

from dialback.errors import ConfigMismatchError
from dialback.queue.lane_repair import LaneRepair
from support.queue_rig import LIMIT


class Restoring:
    """Counts its calls; may fail, or take its time."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0
        self.called = asyncio.Event()
        self.gate = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        self.called.set()
        if self.error is not None:
            raise self.error
        await self.gate.wait()

    async def until_called(self) -> None:
        async with asyncio.timeout(LIMIT):
            await self.called.wait()
            await asyncio.sleep(0)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, str(vars(r).get("reason", r.getMessage()))) for r in caplog.records]


async def test_a_sentence_is_said_once_for_each_lane(caplog: pytest.LogCaptureFixture) -> None:
    repair = LaneRepair("JOBS", None)
    for _ in range(5):
        repair.status_seen("503", "high")
        repair.status_seen("503", "low")
    (high, low) = said(caplog)
    assert high[0] == "WARNING"
    assert "consumer high of stream JOBS" in high[1]
    assert "created again by the start of a worker" in high[1]
    assert "consumer low of stream JOBS" in low[1]


async def test_a_sentence_is_said_again_after_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialback.queue.lane_repair._SAY_EVERY", 0.0)
    repair = LaneRepair("JOBS", None)
    repair.status_seen("503", "high")
    repair.status_seen("503", "high")
    assert len(said(caplog)) == 2


@pytest.mark.parametrize("status", ["404", "408", "400", "no answer to a pull"])
async def test_any_other_status_repairs_nothing(
    status: str, caplog: pytest.LogCaptureFixture
) -> None:
    restore = Restoring()
    repair = LaneRepair("JOBS", restore)
    repair.status_seen(status, "high")
    await repair.close()
    assert (restore.calls, said(caplog)) == (0, [])


async def test_restoring_is_limited_and_ends_with_the_pull_loop() -> None:
    restore = Restoring()
    repair = LaneRepair("JOBS", restore)
    for _ in range(5):
        repair.status_seen("409")
    await restore.until_called()
    repair.status_seen("409")
    await repair.close()
    repair.status_seen("409")
    assert restore.calls == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ConfigMismatchError("consumer JOBS/high", ("ack_wait is 2 s, wanted 30 s",)),
            "stream JOBS could not be restored",
        ),
        (RuntimeError("a fault of ours"), "restoring streams and consumers failed"),
    ],
)
async def test_a_failed_restoring_is_an_error_that_says_why(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "dialback")
    restore = Restoring(error)
    repair = LaneRepair("JOBS", restore)
    repair.status_seen("409")
    await restore.until_called()
    await repair.close()
    ((level, sentence),) = said(caplog)
    assert (level, sentence[: len(reason)]) == ("ERROR", reason)
