"""Notes on messages in a KV bucket, one bucket for all endpoints; see ``note.py``.

A note is read at a redelivery only, and written before a message goes back, by
compare-and-set: no writer undoes another. Nothing here raises for a server that does not
answer: a missing note must not stop a request.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import tenacity
from nats.aio.client import Client

from dialback.errors import NotFoundError, QueueError, ServerUnavailableError, StreamMissingError
from dialback.queue.api import JetStreamApi, WrongLastSequenceError
from dialback.queue.lane_repair import Restore
from dialback.queue.note import NOTES_BUCKET, NOTES_STREAM, Note, Stored, note_subject
from dialback.queue.publisher import EXPECTED_SUBJECT_SEQUENCE_HEADER, Publisher
from dialback.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

_TIMEOUT: Final = 2.0  # seconds for one read or write
_BUDGET: Final = 5.0  # seconds for all tries of one of them, while connected
_CONNECTED_WITHIN: Final = 300.0  # seconds a write waits for the connection, as a settling does
_LOOK_EVERY: Final = 0.1  # seconds between two looks at the connection
_MAX_ROUNDS: Final = 5


class Notes:
    """Reads and writes notes."""

    def __init__(
        self,
        client: Client,
        publisher: Publisher,
        *,
        restore: Restore | None = None,
        budget: float = _BUDGET,
    ) -> None:
        """Use a connected client.

        Args:
            client: Where to ask.
            publisher: Publishes notes over the same connection.
            restore: Creates the bucket if it is missing.
            budget: Seconds for all tries of one read or write, while connected.
        """
        self._client = client
        self._api = JetStreamApi(client, timeout=_TIMEOUT)
        self._publisher = publisher
        self._restore = restore
        self._budget = budget

    async def read(self, key: str) -> Stored | None:
        """Return a message's note; ``None`` if it is not known what it says."""
        try:
            async for attempt in self._tries(self._budget):
                with attempt:
                    return await self._current(key)
        except (QueueError, TimeoutError) as error:
            logger.warning(
                "a note could not be read: this delivery counts no crash before it",
                extra={"key": key, "reason": str(error)},
            )
        return None

    async def write(
        self,
        key: str,
        addition: Note,
        *,
        base: Stored | None = None,
        within: float | None = None,
        lost: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Add to a message's note; return whether it is stored.

        Args:
            key: Whose note.
            addition: What to add.
            base: The note as it was read, which saves reading it again.
            within: Seconds for all tries, while connected.
            lost: Whether the note has become useless while the connection was away.
        """
        if not await self._connected(lost):
            return False
        current = base or Stored()
        try:
            async for attempt in self._tries(within or self._budget):
                with attempt:
                    await self._add(key, addition, current)
                    return True
        except (QueueError, TimeoutError) as error:
            logger.warning(
                "a note could not be written: this delivery will count as a crash",
                extra={"key": key, "reason": str(error)},
            )
        return False

    async def _add(self, key: str, addition: Note, current: Stored) -> None:
        async with asyncio.timeout(_TIMEOUT):
            for _ in range(_MAX_ROUNDS):
                merged = current.note.merged(addition)
                if merged == current.note and current.revision:
                    return
                if await self._put(key, merged, current.revision):
                    return
                current = await self._current(key)
        raise WrongLastSequenceError(f"note {key} keeps changing under our hands")

    async def _put(self, key: str, note: Note, revision: int) -> bool:
        """Write unless somebody else has written since ``revision``."""
        headers = {EXPECTED_SUBJECT_SEQUENCE_HEADER: str(revision)}
        try:
            await self._publisher.publish(note_subject(key), note.encode(), headers, retry=False)
        except WrongLastSequenceError:
            return False
        except StreamMissingError:
            await self._restore_bucket()
            raise
        return True

    async def _current(self, key: str) -> Stored:
        """Ask the leader: a replica may not have the note yet that came before a NAK."""
        try:
            found = await self._api.get_last(NOTES_STREAM, note_subject(key))
        except NotFoundError as missing:
            try:  # without the bucket it is not known that there was no note
                await self._api.stream_info(NOTES_STREAM)
            except NotFoundError:
                await self._restore_bucket()
                raise StreamMissingError(f"bucket {NOTES_BUCKET} is missing") from missing
            return Stored()
        return Stored(Note.decode(found.payload), found.sequence)

    async def _restore_bucket(self) -> None:
        if self._restore is not None:
            await self._restore()

    async def _connected(self, lost: Callable[[], bool]) -> bool:
        """Wait for the connection."""
        clock = asyncio.get_running_loop().time
        end = clock() + _CONNECTED_WITHIN
        while not self._client.is_connected:
            if lost() or self._client.is_closed or clock() > end:
                return False
            await asyncio.sleep(_LOOK_EVERY)
        return True

    def _tries(self, within: float) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(within),
            wait=tenacity.wait_exponential(multiplier=0.1, max=1.0) + tenacity.wait_random(0, 0.1),
            retry=tenacity.retry_if_exception(self._may_succeed),
            reraise=True,
        )

    def _may_succeed(self, error: BaseException) -> bool:
        if self._client.is_closed:
            return False
        transient = (ServerUnavailableError, StreamMissingError, WrongLastSequenceError)
        return isinstance(error, (*transient, TimeoutError))


class LateNotes:
    """Notes on deliveries that are over: written in the background, for nobody waits for them."""

    def __init__(self, notes: Notes, *, within: float = 60.0) -> None:
        """Write them to ``notes``, each for at most ``within`` seconds while connected."""
        self._notes = notes
        self._within = within
        self._tasks: set[asyncio.Task[bool]] = set()
        self._closed = False

    def start(self, key: str, addition: Note) -> None:
        """Write a note, soon or once connected again."""
        if self._closed:
            return
        writing = self._notes.write(key, addition, within=self._within)
        task = asyncio.create_task(writing, name=f"note-{key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, within: float) -> None:
        """Wait at most ``within`` seconds for what is under way; take no more."""
        self._closed = True
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=max(0.0, within))
        await cancel_and_wait(*late)
