"""The submitter's own book: every request once, its items as they came, its one end.

Kept beside the product and by other means, so that it can convict it: an item says which request
it answers and which number it is, and the engine of ``ledger_engine`` writes both.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dialback import EndState, Requester
from dialback.errors import DeadlineExceededError, DialbackError, RequestTimeoutError

COMPLETE = "complete"
LIMIT = 60.0  # seconds for anything a test waits for
CALLER_SIDE = (RequestTimeoutError, DeadlineExceededError)


@dataclass
class Entry:
    """One request.

    Attributes:
        request_id: Its id.
        expected: Items of its whole answer.
        items: Items received so far.
        end: ``complete``, the class of the one typed error, or what the caller did; None while
            it goes on.
        detail: The error's sentence.
        caller_side: Whether the end was the caller's own patience, not something it was told.
    """

    request_id: str
    expected: int
    items: int = 0
    end: str | None = None
    detail: str = ""
    caller_side: bool = False


@dataclass
class Ledger:
    """What was submitted and how each of it ended; violations are kept, not raised."""

    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    problems: list[str] = field(default_factory=list[str])
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, request_id: str, expected: int) -> Entry:
        """Open the entry of a request whose answer has so many items."""
        if request_id in self.entries:
            self.problems.append(f"{request_id}: submitted twice")
        entry = self.entries[request_id] = Entry(request_id, expected)
        return entry

    def receive(self, request_id: str, item: Any) -> None:
        """Note the next item of a request: it must be the next one, and this request's."""
        entry = self.entries[request_id]
        wanted = (request_id, entry.items)
        if entry.end is not None:
            self.problems.append(f"{request_id}: an item after its end ({entry.end})")
        if (seen := (item.get("id"), item.get("i"))) != wanted:
            self.problems.append(f"{request_id}: item {seen} where {wanted} was due")
        entry.items += 1
        self._changed.set()

    def end(
        self, request_id: str, how: str, *, detail: str = "", caller_side: bool = False
    ) -> None:
        """Note the end of a request: there must be one, and a complete one must have all items."""
        entry = self.entries[request_id]
        if entry.end is not None:
            self.problems.append(f"{request_id}: ended twice, {entry.end} and {how}")
        if how == COMPLETE and entry.items != entry.expected:
            self.problems.append(
                f"{request_id}: complete with {entry.items} of {entry.expected} items"
            )
        entry.end, entry.detail, entry.caller_side = how, detail, caller_side
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that items and ends decide."""
        async with asyncio.timeout(LIMIT):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def completes(self, more: int) -> None:
        """Wait until so many more requests are complete than now."""
        wanted = self.complete + more
        await self.until(lambda: self.complete >= wanted)

    async def ask(
        self,
        requester: Requester,
        endpoint: str,
        request: dict[str, Any],
        *,
        request_id: str,
        expected: int,
        leave_after: int | None = None,
        stop_after: int | None = None,
        **options: Any,
    ) -> Entry:
        """Send a request, write down what comes, and how it ends.

        Args:
            requester: Who asks.
            endpoint: Where.
            request: What.
            request_id: Its id.
            expected: Items of the whole answer.
            leave_after: Hang up after so many items.
            stop_after: Ask for a stop after so many items.
            **options: What :meth:`dialback.Requester.generate` takes besides.
        """
        entry = self.submit(request_id, expected)
        asked = requester.generate(endpoint, request, request_id=request_id, **options)
        try:
            async with asked as stream:
                if leave_after == 0:
                    self.end(request_id, "left")
                    return entry
                async for item in stream:
                    self.receive(request_id, item)
                    if entry.items == leave_after:
                        self.end(request_id, "left")
                        return entry
                    if entry.items == stop_after:
                        await stream.stop()
        except DialbackError as error:
            self.end(
                request_id,
                type(error).__name__,
                detail=str(error),
                caller_side=isinstance(error, CALLER_SIDE),
            )
            return entry
        allowed = {EndState.COMPLETE}
        if stop_after is not None and asked.interruptions:
            allowed.add(EndState.CANCELLED)  # no other worker comes after a stop
        if asked.end not in allowed:
            self.problems.append(f"{request_id}: no error, but the stream is {asked.end}")
        if stop_after is not None and entry.items < expected:
            self.end(request_id, "stopped")
        else:
            self.end(request_id, COMPLETE)
        return entry

    @property
    def submitted(self) -> int:
        """Requests begun."""
        return len(self.entries)

    @property
    def ends(self) -> Counter[str]:
        """How often each end was met; those that go on are ``open``."""
        return Counter(entry.end or "open" for entry in self.entries.values())

    @property
    def complete(self) -> int:
        """Requests with all their items."""
        return self.ends[COMPLETE]

    @property
    def lost(self) -> int:
        """Requests that have not ended in any way."""
        return self.ends["open"]

    @property
    def wrong(self) -> int:
        """Items and ends that came twice, not at all, or out of order."""
        return len(self.problems)

    def verify(self) -> None:
        """Fail unless every request has exactly one end and every answer its items in order."""
        assert not self.problems, self.problems[:20]
        assert self.ends["open"] == 0, sorted(
            entry.request_id for entry in self.entries.values() if entry.end is None
        )[:20]
        assert self.ends.total() == self.submitted

    def row(self) -> str:
        """Return the counts in one line."""
        ends = ", ".join(f"{how} {count}" for how, count in sorted(self.ends.items()))
        caller_side = sum(entry.caller_side for entry in self.entries.values())
        return (
            f"submitted {self.submitted} = {ends} (of these caller-side {caller_side};"
            f" problems {len(self.problems)})"
        )
