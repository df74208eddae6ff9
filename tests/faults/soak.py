"""Mixed traffic under random faults, for as long as asked: ``make soak SECONDS=1800 SEED=7``.

The seed decides what is asked and which faults come, in which order and with which pauses; when
exactly each hits is the machine's. At the end both sides' books are compared, and a table of all
outcomes is printed that must add up. The exit code is 1 if anything does not.
"""

import argparse
import asyncio
import random
import secrets
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from dialback import Requester, Settings
from dialback.errors import ServerUnavailableError
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.publisher import MESSAGE_ID_HEADER
from dialback.queue.topology import Endpoint, Lane
from support.accounts import Account, balance
from support.chaos import Chaos
from support.ledger import COMPLETE, Ledger

WORKERS: Final = 4
SLOTS: Final = 8
ACK_WAIT: Final = 3.0  # seconds
PER_SECOND: Final = 25
PROGRESS_EVERY: Final = 10.0  # seconds
_ENDPOINT: Final = Endpoint("soak", "backend", "generate")
_INVALID: Final = "invalid"
_INTERRUPTED: Final = "StreamInterrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One kind of request.

    Attributes:
        share: How often it is sent, relative to the others.
        request: What the engine is asked.
        options: How the caller behaves.
        ends: The ends that it may have; an interruption besides.
    """

    share: int
    request: dict[str, Any]
    ends: frozenset[str] = frozenset({COMPLETE})
    options: dict[str, Any] = field(default_factory=dict[str, Any])


TRAFFIC: Final = {
    "short": Traffic(share=50, request={"n": 5, "delay": 0.01}),
    "long": Traffic(share=8, request={"n": 100, "delay": 0.02}),
    "big": Traffic(share=6, request={"n": 3, "delay": 0.01, "size": 400_000}),
    "high": Traffic(
        share=6, request={"n": 5, "delay": 0.01}, options={"lane": "high", "codec": "msgpack"}
    ),
    "broken": Traffic(
        share=6, request={"n": 5, "fault": "break", "at": 2}, ends=frozenset({"Unknown"})
    ),
    "refused": Traffic(
        share=6, request={"n": 5, "fault": "refuse"}, ends=frozenset({"EngineRefusedError"})
    ),
    "leaving": Traffic(
        share=6,
        request={"n": 100, "delay": 0.01},
        ends=frozenset({"left"}),
        options={"leave_after": 3},
    ),
    "stopping": Traffic(
        share=6,
        request={"n": 500, "delay": 0.01},
        ends=frozenset({"stopped"}),
        options={"stop_after": 3},
    ),
    "expiring": Traffic(
        share=6,
        request={"n": 1, "delay": 0.02},
        ends=frozenset({COMPLETE, "RequestTimeoutError"}),
        options={"timeout": 0.05, "lane": "low"},
    ),
    _INVALID: Traffic(share=4, request={}),
}


class Soak:
    """One soak.

    Attributes:
        ledger: The submitter's book.
        invalid: Ids of unreadable requests, which must become one dead letter each.
        unknown: Those of them of which the server did not say that it has them.
        problems: What did not add up.
    """

    def __init__(self, *, seconds: float, seed: int) -> None:
        self._seconds = seconds
        self._seed = seed
        self._requests = random.Random(seed)  # noqa: S311 -- repeatable
        self._faults = random.Random(seed + 1)  # noqa: S311 -- likewise
        self.ledger = Ledger()
        self.invalid: set[str] = set()
        self.unknown: set[str] = set()
        self.problems: list[str] = []

    async def run(self) -> bool:
        """Run it; return whether everything added up."""
        _say(f"soak: {self._seconds:g} s, seed {self._seed}")
        async with (
            EmbeddedServer() as server,
            Requester(Settings.load(server=server.url)) as requester,
            Chaos(
                _ENDPOINT, server, size=WORKERS, seed=self._seed, slots=SLOTS, ack_wait=ACK_WAIT
            ) as chaos,
        ):
            client = await QueueClient.open(
                ServerAddress(url=server.url), name="soak", role="requester"
            )
            try:
                await self._under_faults(requester, client, chaos)
                self._look_for_deaths(chaos)
                account = await balance(
                    server.url, _ENDPOINT, self.ledger, chaos, foreign=frozenset(self.invalid)
                )
                self._judge(account)
                self._report(account, chaos)
            except Exception as error:
                self.problems.append(f"{type(error).__name__}: {error}")
                _say(traceback.format_exc())
                for line in [*map(str, chaos.actions), self.ledger.row()]:
                    _say(line)
            finally:
                await client.close()
        for problem in self.problems:
            _say(f"PROBLEM  {problem}"[:2000])
        _say(f"seed {self._seed}: " + ("it does not add up" if self.problems else "it adds up"))
        return not self.problems

    async def _under_faults(self, requester: Requester, client: QueueClient, chaos: Chaos) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._seconds
        async with asyncio.TaskGroup() as tasks:
            progress = tasks.create_task(self._progress(chaos), name="progress")
            async with asyncio.TaskGroup() as work:
                work.create_task(self._hurt(chaos, end), name="faults")
                work.create_task(self._offer(requester, client, end), name="traffic")
            progress.cancel()

    async def _offer(self, requester: Requester, client: QueueClient, end: float) -> None:
        """Send at a fixed rate until the end, then wait for the last answer."""
        loop = asyncio.get_running_loop()
        begun, number = loop.time(), 0
        shares = [traffic.share for traffic in TRAFFIC.values()]
        async with asyncio.TaskGroup() as callers:
            while loop.time() < end:
                number += 1
                (kind,) = self._requests.choices(list(TRAFFIC), shares)
                if kind == _INVALID:
                    callers.create_task(self._publish_invalid(client, f"{kind}-{number}"))
                else:
                    callers.create_task(self._ask(requester, kind, f"{kind}-{number}"))
                await asyncio.sleep(begun + number / PER_SECOND - loop.time())

    async def _ask(self, requester: Requester, kind: str, request_id: str) -> None:
        traffic = TRAFFIC[kind]
        await self.ledger.ask(
            requester,
            str(_ENDPOINT),
            traffic.request,
            request_id=request_id,
            expected=traffic.request["n"],
            **traffic.options,
        )

    async def _publish_invalid(self, client: QueueClient, request_id: str) -> None:
        self.invalid.add(request_id)
        headers = {"request-id": request_id, MESSAGE_ID_HEADER: request_id}
        subject = _ENDPOINT.request_subject(Lane.NORMAL, request_id)
        try:
            await client.publisher.publish(subject, b"no two-part message", headers)
        except ServerUnavailableError:
            self.unknown.add(request_id)

    async def _hurt(self, chaos: Chaos, end: float) -> None:
        loop, dice = asyncio.get_running_loop(), self._faults
        while loop.time() < end:
            await asyncio.sleep(dice.uniform(2, 6))
            match dice.choices(["kill", "freeze", "roll", "broker"], [4, 2, 2, 1])[0]:
                case "kill":
                    await chaos.kill_worker()
                case "freeze":
                    await chaos.freeze_worker(dice.uniform(0.5, 2.5) * ACK_WAIT)
                case "roll":
                    if code := await chaos.roll_worker():
                        self.problems.append(f"a worker ended with {code} at SIGTERM")
                case _:
                    await chaos.restart_broker(down=dice.uniform(0, 2))

    async def _progress(self, chaos: Chaos) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            await asyncio.sleep(PROGRESS_EVERY)
            _say(f"{loop.time() - begun:6.0f} s  {len(chaos.actions)} faults  {self.ledger.row()}")

    # --- judging ----------------------------------------------------------------------

    def _look_for_deaths(self, chaos: Chaos) -> None:
        for worker in chaos.alive:
            if (code := worker.process.returncode) is not None:
                self.problems.append(f"a worker ended of itself with {code}: {worker.log[-5:]}")

    def _judge(self, account: Account) -> None:
        """Each kind of request may end in its own ways only; each bad one is one dead letter."""
        for request_id, entry in self.ledger.entries.items():
            allowed = TRAFFIC[request_id.partition("-")[0]].ends | {_INTERRUPTED}
            if entry.end not in allowed:
                self.problems.append(f"{request_id}: {entry.end}: {entry.detail}")
        letters = Counter(letter.request_id for letter in account.letters)
        if twice := [i for i, count in letters.items() if count > 1]:
            self.problems.append(f"in the dead letters more than once: {twice}")
        if missing := self.invalid - self.unknown - set(letters):
            self.problems.append(f"lost without a dead letter: {missing}")

    def _report(self, account: Account, chaos: Chaos) -> None:
        for action in chaos.actions:
            _say(str(action))
        for line in account.letter_lines():
            if not line.startswith(_INVALID):
                _say(f"dead letter  {line}")
        for line in self._table(account):
            _say(line)
        _say(f"second runs of an engine: {account.reruns}")
        _say(f"delivered again after a logged end, to a spent stream: {len(account.twice)}")

    def _table(self, account: Account) -> list[str]:
        """Return the table of outcomes: one row for each kind of request, and the sums."""
        rows = {kind: Counter[str]() for kind in TRAFFIC}
        for entry in self.ledger.entries.values():
            rows[entry.request_id.partition("-")[0]][entry.end or "open"] += 1
        lettered = {letter.request_id for letter in account.letters}
        rows[_INVALID]["dead letter"] = len(self.invalid & lettered)
        rows[_INVALID]["never stored"] = len(self.unknown - lettered)
        submitted = self.ledger.submitted + len(self.invalid)
        sums = sum(rows.values(), Counter[str]())
        if sums.total() != submitted:
            self.problems.append(f"submitted {submitted}, ended {sums.total()}")
        ends = sorted(sums)
        lines = [f"{'':10}" + "".join(f"{end:>21}" for end in [*ends, "sum"])]
        for kind, counts in [*rows.items(), ("all", sums)]:
            cells = [*(counts[end] for end in ends), counts.total()]
            lines.append(f"{kind:10}" + "".join(f"{cell:>21}" for cell in cells))
        return [*lines, f"submitted {submitted} = {sums.total()} ended"]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to send")
    parser.add_argument("--seed", type=int, help="decides requests and faults; default: random")
    given = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    return 0 if asyncio.run(Soak(seconds=given.seconds, seed=seed).run()) else 1


if __name__ == "__main__":
    sys.exit(main())
