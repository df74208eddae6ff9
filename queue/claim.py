"""A claim that one process of many holds for a while: who looks after an endpoint's queue.

A message of a stream with an age limit: written only if the subject has none, renewed only by
whoever knows its sequence. A holder that dies holds it no longer than that limit.
"""

import asyncio
from contextlib import suppress
from enum import Enum
from typing import Any, Final

from dialback.errors import NotFoundError, QueueError, StreamMissingError
from dialback.queue.api import JetStreamApi, WrongLastSequenceError
from dialback.queue.publisher import EXPECTED_SUBJECT_SEQUENCE_HEADER, Publisher

CLAIM_SECONDS: Final = 60
"""How long a claim lasts without renewal; more than one batch of answers takes."""
_BUCKET: Final = "dialback_claims"
_STREAM: Final = f"KV_{_BUCKET}"
_NS: Final = 1_000_000_000
_RELEASE_WITHIN: Final = 1.0  # seconds


class Held(Enum):
    """What asking for a claim brought."""

    NO = "another process has it"
    NEW = "ours from now on"
    STILL = "ours, without a gap"


def claims_stream(replicas: int, seconds: float) -> dict[str, Any]:
    """Return the configuration of the stream of claims: a KV bucket, in memory."""
    return {
        "name": _STREAM,
        "description": "dialback: which process looks after a queue",
        "subjects": [f"$KV.{_BUCKET}.>"],
        "retention": "limits",
        "discard": "new",
        "storage": "memory",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "max_age": round(seconds * _NS),
        "allow_rollup_hdrs": True,
        "deny_delete": False,
        "allow_direct": True,
    }


class Claim:
    """One process's claim to one key."""

    def __init__(
        self,
        api: JetStreamApi,
        publisher: Publisher,
        key: str,
        *,
        holder: str,
        replicas: int = 1,
        seconds: float = CLAIM_SECONDS,
    ) -> None:
        """Name the claim; nothing is asked before :meth:`hold`.

        Args:
            api: JetStream API.
            publisher: Publishes the claim.
            key: What is claimed: letters, digits, ``-`` and ``_``.
            holder: Who claims it, for people who look.
            replicas: Copies of the stream of claims, if it has to be created.
            seconds: Age limit of that stream, if it has to be created.
        """
        self._api = api
        self._publisher = publisher
        self._subject = f"$KV.{_BUCKET}.{key}"
        self._holder = holder.encode()
        self._config = claims_stream(replicas, seconds)
        self._sequence = 0
        self._ready = False

    async def hold(self) -> Held:
        """Take the claim, or renew it.

        Raises:
            QueueError: If the server does not answer, or refuses.
        """
        if not self._ready:
            await self._provision()
        renewing = self._sequence > 0
        try:
            if await self._write(self._sequence):
                return Held.STILL if renewing else Held.NEW
            # Ours has expired, or is somebody else's; without any it is to be had.
            if renewing and await self._write(0):
                return Held.NEW
        except StreamMissingError:  # it is in memory: a restarted server has forgotten it
            self._ready = False
            raise
        self._sequence = 0
        return Held.NO

    async def release(self) -> None:
        """Let another process have it at once; never raises."""
        sequence, self._sequence = self._sequence, 0
        if sequence:
            with suppress(QueueError, TimeoutError):  # it expires by itself
                async with asyncio.timeout(_RELEASE_WITHIN):
                    await self._api.delete_message(_STREAM, sequence)

    async def _provision(self) -> None:
        try:
            await self._api.stream_info(_STREAM)
        except NotFoundError:
            await self._api.create_stream(self._config)
        self._ready = True

    async def _write(self, expected: int) -> bool:
        headers = {EXPECTED_SUBJECT_SEQUENCE_HEADER: str(expected)}
        try:
            ack = await self._publisher.publish(self._subject, self._holder, headers, retry=False)
        except WrongLastSequenceError:
            return False
        self._sequence = ack.sequence
        return True
