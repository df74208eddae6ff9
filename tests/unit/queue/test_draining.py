import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dialback.outcomes import Revocation
from dialback.queue.draining import Draining

LONG = 3600.0


class Drain:
    """A drain with one work that does not end; another worker waits for work all the time."""

    def __init__(self, lingers: float) -> None:
        self.looked, self.offered = asyncio.Event(), asyncio.Event()
        self.idle = asyncio.Event()
        revocation = Revocation()
        revocation.on_handover_offered(self.offered.set)
        self.work = asyncio.create_task(self.idle.wait())
        works: Any = {
            self.work: SimpleNamespace(
                delivery=SimpleNamespace(lane="normal", revocation=revocation), settling=False
            )
        }
        self.work.add_done_callback(works.pop)
        api: Any = SimpleNamespace(consumer_info=self._consumer_info)
        self.draining = Draining(
            api, "JOBS", works, idle=self.idle, end=lambda _: None, lingers=lambda: lingers
        )
        end = asyncio.get_running_loop().time() + LONG
        self.run = asyncio.create_task(
            self.draining.run(end, reserve=0.0, hurry=asyncio.Event()), name="drain"
        )

    async def _consumer_info(self, stream: str, lane: str) -> dict[str, Any]:
        del stream, lane
        self.looked.set()
        return {"num_waiting": 1}

    async def over(self) -> None:
        """Let the work end, and the drain."""
        self.idle.set()
        await asyncio.gather(self.work, self.run)


@pytest.fixture(autouse=True)
def others_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialback.queue.draining._OTHERS_STOP", 0.0)


async def test_what_runs_is_offered_when_another_worker_waits() -> None:
    drain = Drain(lingers=0.0)
    await drain.offered.wait()
    await drain.over()


async def test_nobody_is_looked_for_while_the_own_pulls_may_still_stand() -> None:
    """They would count as another worker that waits."""
    drain = Drain(lingers=LONG)
    for _ in range(20):
        await asyncio.sleep(0)
    await drain.over()
    assert not drain.looked.is_set()
    assert not drain.offered.is_set()
