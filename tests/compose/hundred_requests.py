"""Many requests at once from a container of docker-compose.yml, counted by how they end.

Runs in the image, read from stdin, so that nothing has to be mounted; ``run.sh`` calls it::

    docker compose run --rm --no-deps -T --entrypoint python requester - < hundred_requests.py

Prints ``mark`` on a line of its own when the requests are well under way: ``run.sh`` then kills
or stops workers. Each request must end complete, with exactly the tokens that were asked for,
or with ``StreamInterrupted`` after a beginning of them. Exit code 1 if one did not, if one
hung, or if the queue did not become empty afterwards.
"""

import argparse
import asyncio
import itertools
import json
import time
import urllib.request
from collections import Counter
from typing import Any

from dialback import DialbackError, EndState, Requester, StreamInterrupted

PROMPT = "every answer is complete or says that it is not"
FIRST_ITEM = 120.0  # seconds: longer than a lease, which a killed worker's requests wait for
DEADLINE = 180.0  # seconds for a whole stream
HUNG = 240.0  # seconds after which nothing can excuse a request
POLL = 0.5  # seconds between two looks at the queue


def say(line: str) -> None:
    """Print a line at once: ``run.sh`` waits for some of them."""
    print(line, flush=True)  # noqa: T201


class Run:
    """The requests of one run, and what became of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ends: Counter[str] = Counter()
        self.started = 0
        self.replaced = 0
        self._marked = False

    async def run(self) -> bool:
        """Send everything, print the figures, and say whether all is well."""
        begin = time.monotonic()
        async with Requester() as requester:
            say(f"requester listens on {requester.address}")
            async with asyncio.TaskGroup() as group:
                for number in range(self.options.requests):
                    group.create_task(self._request(requester, number))
            seconds = time.monotonic() - begin
            # Until then the requester stays: a second worker may still dial a broken stream.
            left = await self._await_empty_queue()
        figures = {
            "requests": self.options.requests,
            **{end: self.ends[end] for end in ("complete", "interrupted", "failed", "hung")},
            "replaced_workers": self.replaced,
            "seconds": round(seconds, 1),
            **left,
        }
        say("figures " + json.dumps(figures))
        good = self.ends["complete"] + self.ends["interrupted"] == self.options.requests
        return good and not left["queued"]

    async def _request(self, requester: Requester, number: int) -> None:
        try:
            async with asyncio.timeout(HUNG):
                end = await self._answer(requester, number)
        except TimeoutError:
            end = "hung"
            say(f"request {number}: still not ended after {HUNG:g} s")
        self.ends[end] += 1
        self._mark()

    async def _answer(self, requester: Requester, number: int) -> str:
        # Of different lengths, so that at any moment some begin, some run and some end.
        tokens = self.options.tokens + number % self.options.tokens
        expected = [w + " " for w in itertools.islice(itertools.cycle(PROMPT.split()), tokens)]
        request = {"prompt": PROMPT, "tokens": tokens, "rate": self.options.rate}
        received: list[str] = []
        try:
            stream = requester.generate(
                self.options.endpoint, request, timeout=FIRST_ITEM, deadline=DEADLINE
            )
            async with stream:
                async for item in stream:
                    if not received:
                        self.started += 1
                        self._mark()
                    received.append(item["token"])
                self.replaced += stream.interruptions
        except StreamInterrupted:
            good = received == expected[: len(received)]
            return "interrupted" if good else self._failed(number, "wrong tokens, interrupted")
        except DialbackError as error:
            return self._failed(number, f"{type(error).__name__}: {error}")
        if stream.end is EndState.COMPLETE and received == expected:
            return "complete"
        return self._failed(number, f"{stream.end}, {len(received)} of {tokens} tokens")

    def _failed(self, number: int, why: str) -> str:
        say(f"request {number}: {why}")
        return "failed"

    def _mark(self) -> None:
        ended = sum(self.ends.values())
        options = self.options
        if self._marked or not (options.mark_begun or options.mark_ended):
            return
        if ended >= options.mark_ended and self.started >= options.mark_begun:
            self._marked = True
            say(f"{self.started} begun, {ended} ended")
            say("mark")

    async def _await_empty_queue(self) -> dict[str, int]:
        """Wait until no request is left in the queue; return what is there."""
        end = time.monotonic() + self.options.settle
        while True:
            left = await asyncio.to_thread(self._stored)
            if not left["queued"] or time.monotonic() > end:
                return left
            await asyncio.sleep(POLL)

    def _stored(self) -> dict[str, int]:
        url = f"{self.options.monitor}/jsz?streams=true"
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 -- http, our server
            report: dict[str, Any] = json.load(reply)
        counts: Counter[str] = Counter()
        for account in report.get("account_details", []):
            for stream in account.get("stream_detail", []):
                counts[stream["name"].partition("_")[0]] += stream["state"]["messages"]
        return {"queued": counts["JOBS"], "dead_letters": counts["DEAD"]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", default="demo.backend.generate")
    parser.add_argument("--monitor", default="http://nats:8222", help="nats-server's HTTP port")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=30, help="the shortest answer's")
    parser.add_argument("--rate", type=float, default=20.0, help="tokens per second")
    parser.add_argument("--mark-begun", type=int, default=0, metavar="N")
    parser.add_argument("--mark-ended", type=int, default=0, metavar="N")
    parser.add_argument(
        "--settle", type=float, default=90.0, help="seconds for the queue to become empty"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(not asyncio.run(Run(_options()).run()))
