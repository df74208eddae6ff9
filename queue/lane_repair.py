"""What a pull loop does about a lane that cannot be pulled: say so, and have it restored.

Statuses are told by their number only. 503 means that nobody answers: the consumer or its
stream is gone, or has no leader at the moment. 409 has many reasons, "consumer deleted" among
them. Neither proves that something is missing, so ``restore`` must verify before it creates.

Source: ADR-13 (status codes), jetstream section 1.5.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from dialback.errors import DialbackError
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

Restore: TypeAlias = Callable[[], Awaitable[None]]
"""Creates what is missing of an endpoint's streams and consumers, and verifies the rest."""

_MAY_BE_GONE: Final = frozenset({"409", "503"})
_RESTORE_EVERY: Final = 3.0  # seconds; fifty workers see the same deletion
_SAY_EVERY: Final = 30.0  # seconds


class LaneRepair:
    """Reports the failing lanes of one stream, and restores them."""

    def __init__(self, stream: str, restore: Restore | None) -> None:
        """Repair with ``restore``; without it, only report."""
        self._stream = stream
        self._restore = restore
        self._said: dict[str, float] = {}
        self._restored = -_RESTORE_EVERY
        self._task: asyncio.Task[None] | None = None

    def status_seen(self, status: str, lane: str | None = None) -> None:
        """A pull was answered with a status that is none of the ordinary ones."""
        if status not in _MAY_BE_GONE:
            return
        if lane is not None:
            self._say(
                logging.WARNING,
                f"consumer {lane} of stream {self._stream} does not take pulls (status {status}):"
                " it or its stream was deleted, or has no leader. Requests of this lane wait;"
                f" what is missing is created again by {self._who()}",
            )
        self._start_restoring()

    async def close(self) -> None:
        """Stop restoring."""
        if self._task is not None:
            await cancel_and_wait(self._task)

    def _who(self) -> str:
        return "the start of a worker" if self._restore is None else "this worker, in seconds"

    def _start_restoring(self) -> None:
        now = time.monotonic()
        running = self._task is not None and not self._task.done()
        if self._restore is None or running or now - self._restored < _RESTORE_EVERY:
            return
        self._restored = now
        self._task = asyncio.create_task(self._run(self._restore), name="restore-lanes")

    async def _run(self, restore: Restore) -> None:
        try:
            await restore()
        except DialbackError as error:
            self._say(logging.ERROR, f"stream {self._stream} could not be restored: {error}")
        except Exception:
            logger.exception("restoring streams and consumers failed")

    def _say(self, level: int, sentence: str) -> None:
        """Log a sentence, the same one at most every 30 seconds."""
        now = time.monotonic()
        if now - self._said.get(sentence, -_SAY_EVERY) < _SAY_EVERY:
            return
        self._said[sentence] = now
        logger.log(
            level, "a queue cannot be pulled", extra={"stream": self._stream, "reason": sentence}
        )
