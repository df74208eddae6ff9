"""Streams that survive their worker: what a worker makes of the requester's answer.

Pure. The requester says how many items it has (k); the engine says whether it can go on from
there. :func:`plan` decides between the two, :class:`Replay` takes the items that the requester
has already out of an engine that runs again, and notices when they are not the same.

Source: overview section 4.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec
from xxhash import xxh3_64

from dialback.errors import ResponseTimeout, StreamInterrupted, Unknown
from dialback.outcomes import Outcome
from dialback.transport.dynamo_errors import backend_error, interrupted_error
from dialback.transport.messages import DynamoError, ResumeAnswer

BREATH: Final = 64
"""Replayed items between two turns of the event loop."""


class Resume(StrEnum):
    """What an engine declares that it can do for a stream whose worker was lost."""

    REPLAY = "replay"
    """Deterministic: run again, it yields the same items."""
    CONTINUE = "continue"
    """It starts at ``context.resume_from``."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Call the engine.

    Attributes:
        delivered: Items that the requester has.
        skip: Items that the engine will yield again, to be dropped.
        history: Those items, if the requester kept them; for an engine that continues.
        digest: XXH3-64 over their bodies as the requester received them, or 0 if it did not say.
        waited: Seconds for which the requester had gone without an item when it answered.
    """

    delivered: int = 0
    skip: int = 0
    history: list[Any] | None = None
    digest: int = 0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not call the engine: tell the caller why, and end the request."""

    outcome: Outcome
    error: DynamoError


Plan: TypeAlias = Start | GiveUp


def plan(
    answer: ResumeAnswer,
    ability: Resume | None,
    *,
    max_crashes: int,
    expired: bool,
    crashes: int = 0,
) -> Plan:
    """Decide what to do on a stream that its requester has kept open.

    Args:
        answer: What the requester has.
        ability: What the engine declares.
        max_crashes: Consecutive workers that may be lost without a new item.
        expired: Whether the caller has given up waiting for a first item.
        crashes: Earlier deliveries whose worker died without saying how they ended. Once there
            are items they prove nothing: a death that follows progress is no step towards poison.
    """
    delivered = answer.resume
    if answer.fruitless >= max_crashes:
        reason = f"given up: {answer.fruitless} workers in a row were lost without a new item"
        return GiveUp(Outcome.POISON, backend_error(Unknown, reason))
    if delivered == 0:
        if crashes >= max_crashes:
            reason = f"given up: {crashes} workers died while they had it"
            return GiveUp(Outcome.POISON, backend_error(Unknown, reason))
        if expired:
            reason = "the request's deadline passed while it was queued"
            return GiveUp(Outcome.EXPIRED, backend_error(ResponseTimeout, reason))
        return Start(waited=answer.waited_ms / 1000)
    if ability is None:
        reason = f"its worker was lost after {delivered} items, and the engine cannot resume"
        return GiveUp(Outcome.INTERRUPTED, interrupted_error(reason))
    return Start(
        delivered=delivered,
        skip=delivered if ability is Resume.REPLAY else 0,
        history=answer.delivered if ability is Resume.CONTINUE else None,
        digest=int(answer.digest or "0", 16),
        waited=answer.waited_ms / 1000,
    )


class ReplayError(StreamInterrupted):
    """An engine that declared ``replay`` did not yield the same items again.

    Attributes:
        why: Half a sentence.
    """

    def __init__(self, items: int, why: str) -> None:
        super().__init__(items, why)
        self.why = why


class Replay:
    """Drops the first items of an engine that runs again.

    Attributes:
        skip: Items to drop.
        dropped: Items dropped so far.
    """

    __slots__ = ("_digest", "_hash", "dropped", "skip")

    def __init__(self, start: Start | None = None) -> None:
        start = start or Start()
        self.skip = start.skip
        self.dropped = 0
        self._digest = start.digest
        self._hash = xxh3_64()

    @property
    def pending(self) -> bool:
        """Whether the next item is one that the requester has."""
        return self.dropped < self.skip

    def drop(self, body: bytes) -> None:
        """Take one item out.

        Args:
            body: The body of its frame, as it would be written.

        Raises:
            ReplayError: If, now that all are there, they are not what the requester has.
        """
        self._hash.update(body)
        self.dropped += 1
        if not self.pending and self._digest and self._hash.intdigest() != self._digest:
            raise ReplayError(self.skip, "the engine's replay differs from what was delivered")

    def check_complete(self) -> None:
        """The engine has ended.

        Raises:
            ReplayError: If it ended before the items that the requester has.
        """
        if self.pending:
            raise ReplayError(
                self.skip, f"the engine's replay ended after {self.dropped} of {self.skip} items"
            )
