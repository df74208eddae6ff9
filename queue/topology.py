"""Streams, consumers and subjects of an endpoint: named here, created or verified.

Names and definitions are pure; :class:`Topology` acts on them through the JetStream API.
What exists is never altered: a difference that matters is an error that says what to do.

Source: overview section 8; jetstream sections 0, 2.5 and 7. Consumers are provisioned with
raw JSON because nats-py drops fields that it does not know.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from typing_extensions import override

from dialback.errors import (
    ConfigError,
    ConfigMismatchError,
    PermissionDeniedError,
    ServerUnavailableError,
)
from dialback.queue.api import JetStreamApi
from dialback.queue.note import NOTES_BUCKET, NOTES_STREAM, notes_stream
from dialback.queue.patience import found_or_created, patiently

_NS: Final = 1_000_000_000
_NAME: Final = r"[a-z0-9-][a-z0-9_-]*"
_STREAM_NAME: Final = re.compile(rf"(?:JOBS|DEAD)_({_NAME})_C_({_NAME})_E_({_NAME})")


class Lane(StrEnum):
    """The lanes of a queue, most urgent first. One durable consumer each."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``namespace.component.endpoint``: Dynamo's own triple. One endpoint is one queue."""

    namespace: str
    component: str
    endpoint: str

    @override
    def __str__(self) -> str:
        return f"{self.namespace}.{self.component}.{self.endpoint}"

    @classmethod
    @lru_cache(maxsize=256)  # the same one with every request
    def parse(cls, text: str) -> "Endpoint":
        """Read ``NS.COMP.EP``.

        Raises:
            ConfigError: If it has not three names, or one that Dynamo's slug would change.
        """
        parts = text.split(".")
        if len(parts) != 3:  # noqa: PLR2004 -- a triple
            raise ConfigError(
                f"endpoint {text!r} is not NAMESPACE.COMPONENT.ENDPOINT, e.g. demo.backend.generate"
            )
        for part in parts:
            if not re.fullmatch(_NAME, part):
                raise ConfigError(
                    f"endpoint {text!r}: {part!r} is not a name; names are lower-case letters,"
                    " digits, '-' and '_', and do not begin with '_'"
                )
        return cls(*parts)

    @property
    def stream(self) -> str:
        """Name of the stream of requests. Reversible: names have no upper-case letters."""
        return f"JOBS_{self._suffix}"

    @property
    def dead_stream(self) -> str:
        """Name of the stream of dead letters."""
        return f"DEAD_{self._suffix}"

    @property
    def _suffix(self) -> str:
        return f"{self.namespace}_C_{self.component}_E_{self.endpoint}"

    @property
    def _root(self) -> str:
        return f"dialback.{self}"

    def lane_subject(self, lane: Lane) -> str:
        """Subject filter of a lane."""
        return f"{self._root}.jobs.{lane}.>"

    def request_subject(self, lane: Lane, token: str) -> str:
        """Subject of one request."""
        return f"{self._root}.jobs.{lane}.{token}"

    @property
    def dead_subjects(self) -> str:
        """Subject filter of the dead letters."""
        return f"{self._root}.dead.*"

    def dead_subject(self, token: str) -> str:
        """Subject of one request's dead letter."""
        return f"{self._root}.dead.{token}"

    @classmethod
    def of_stream(cls, stream: str) -> "Endpoint | None":
        """Return the endpoint that a stream's name means, or ``None`` if it is not ours."""
        found = _STREAM_NAME.fullmatch(stream)
        return cls(*found.groups()) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """What provisioning wants; defaults of overview section 8.

    Attributes:
        ack_wait: Seconds a lease lasts without renewal.
        replicas: Copies of each stream (3 in a cluster).
        max_messages: Requests a queue holds at most; more are refused. -1 is no limit.
        max_ack_pending: Requests in flight or delayed, over all workers.
        max_waiting: Pull requests that may wait at a consumer.
        max_batch: Messages one pull may ask for.
        dead_letter_days: Days a dead letter is kept.
    """

    ack_wait: float = 30.0
    replicas: int = 1
    max_messages: int = -1
    max_ack_pending: int = 20_000
    max_waiting: int = 8_192
    max_batch: int = 64
    dead_letter_days: int = 30


def requests_stream(endpoint: Endpoint, settings: QueueSettings) -> dict[str, Any]:
    """Return the configuration of the endpoint's work-queue stream."""
    return {
        "name": endpoint.stream,
        "description": f"dialback requests of {endpoint}",
        "subjects": [endpoint.lane_subject(lane) for lane in Lane],
        "retention": "workqueue",
        "discard": "new",
        "storage": "file",
        "num_replicas": settings.replicas,
        "max_msgs": settings.max_messages,
        "max_age": 0,
        "duplicate_window": 600 * _NS,
        "allow_direct": True,
        "metadata": _metadata(endpoint),
    }


def dead_letter_stream(endpoint: Endpoint, settings: QueueSettings) -> dict[str, Any]:
    """Return the configuration of the endpoint's dead-letter stream."""
    return {
        "name": endpoint.dead_stream,
        "description": f"dialback dead letters of {endpoint}",
        "subjects": [endpoint.dead_subjects],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": settings.replicas,
        "max_age": settings.dead_letter_days * 86_400 * _NS,
        "duplicate_window": 600 * _NS,
        "allow_direct": True,
        "metadata": _metadata(endpoint),
    }


def lane_consumer(endpoint: Endpoint, lane: Lane, settings: QueueSettings) -> dict[str, Any]:
    """Return the configuration of a lane's durable pull consumer."""
    return {
        "name": lane.value,
        "durable_name": lane.value,
        "description": f"dialback lane {lane} of {endpoint}",
        "filter_subject": endpoint.lane_subject(lane),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": round(settings.ack_wait * _NS),
        "max_deliver": -1,
        "max_ack_pending": settings.max_ack_pending,
        "max_waiting": settings.max_waiting,
        "max_batch": settings.max_batch,
        "metadata": _metadata(endpoint),
    }


def _metadata(endpoint: Endpoint) -> dict[str, str]:
    return {
        "dialback.namespace": endpoint.namespace,
        "dialback.component": endpoint.component,
        "dialback.endpoint": endpoint.endpoint,
    }


# What a worker's correctness rests on; an operator may choose the rest (replicas, limits).
_STREAM_KEYS: Final = ("subjects", "retention", "discard", "max_age", "allow_direct")
_DEAD_KEYS: Final = ("subjects", "retention", "allow_direct")
_NOTES_KEYS: Final = ("subjects", "retention", "max_msgs_per_subject")
_CONSUMER_KEYS: Final = ("filter_subject", "ack_policy", "ack_wait", "max_deliver")


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], keys: tuple[str, ...]
) -> tuple[str, ...]:
    """Return one sentence for each of ``keys`` that is not as wanted."""
    return tuple(
        f"{key} is {_shown(key, found.get(key))}, wanted {_shown(key, wanted[key])}"
        for key in keys
        if (found.get(key) or 0) != (wanted[key] or 0)
    )


def _shown(key: str, value: object) -> str:
    if key in {"ack_wait", "max_age"} and isinstance(value, int):
        return f"{value / _NS:g} s"
    return str(value)


class Topology:
    """Creates or verifies what an endpoint needs.

    Attributes:
        created: Lane to the time at which its consumer was created, RFC 3339; kept up to date
            by :meth:`ensure`.
    """

    def __init__(self, api: JetStreamApi, endpoint: Endpoint, settings: QueueSettings) -> None:
        self._api = api
        self._endpoint = endpoint
        self._settings = settings
        self.created: dict[str, str] = {}

    async def ensure(self, *, within: float = 0.0) -> None:
        """Create what is missing; verify what is there.

        Args:
            within: Seconds for further tries while JetStream does not answer.

        Raises:
            ConfigMismatchError: If something exists with other settings that matter.
            QueueError: If the server refuses, or cannot be reached.
        """
        await patiently(self._ensure, what=str(self._endpoint), within=within)

    async def _ensure(self) -> None:
        endpoint, settings = self._endpoint, self._settings
        await self._ensure_stream(requests_stream(endpoint, settings), _STREAM_KEYS)
        await self._ensure_stream(dead_letter_stream(endpoint, settings), _DEAD_KEYS)
        await self._ensure_notes(notes_stream(settings.replicas))
        for lane in Lane:
            await self._ensure_consumer(lane_consumer(endpoint, lane, settings))

    async def _ensure_stream(self, wanted: dict[str, Any], keys: tuple[str, ...]) -> None:
        name = wanted["name"]
        found = await found_or_created(
            lambda: self._api.stream_info(name), lambda: self._api.create_stream(wanted)
        )
        wrong = differences(wanted, found["config"], keys)
        if wrong:
            raise ConfigMismatchError(f"stream {name}", (*wrong, _ADVICE.format(name=name)))

    async def _ensure_notes(self, wanted: dict[str, Any]) -> None:
        """Ensure the bucket of notes: the only thing that endpoints share.

        So users who may do all with their own endpoint may not be allowed to create it.
        """
        try:
            await self._ensure_stream(wanted, _NOTES_KEYS)
        except (PermissionDeniedError, ServerUnavailableError) as error:
            raise type(error)(f"bucket {NOTES_BUCKET}: {error}. {_NOTES_ADVICE}") from error

    async def _ensure_consumer(self, wanted: dict[str, Any]) -> None:
        stream, name = self._endpoint.stream, wanted["name"]
        found = await found_or_created(
            lambda: self._api.consumer_info(stream, name),
            lambda: self._api.create_consumer(stream, wanted),
        )
        config = found["config"]
        wrong = differences(wanted, config, _CONSUMER_KEYS)
        if config.get("backoff"):
            wrong = (*wrong, "backoff is set, which shortens the lease of a live worker")
        if 0 < (batch := config.get("max_batch") or 0) < wanted["max_batch"]:
            wrong = (*wrong, f"max_batch is {batch}, workers ask for {wanted['max_batch']}")
        self.created[name] = found["created"]
        if wrong:
            advice = "set DIALBACK_ACK_WAIT to the consumer's ack_wait, or edit the consumer"
            raise ConfigMismatchError(f"consumer {stream}/{name}", (*wrong, advice))


_ADVICE: Final = "edit it (nats stream edit {name}), or use another endpoint name"
_NOTES_ADVICE: Final = (
    "If it is missing and this user may not create it, create it once as one who may: nats kv add"
    f" {NOTES_BUCKET} --history=1 --ttl=30d --storage=file --replicas=N. A worker needs"
    f" $JS.API.STREAM.INFO.{NOTES_STREAM}, $JS.API.STREAM.MSG.GET.{NOTES_STREAM} and"
    f" $KV.{NOTES_BUCKET}.>"
)
