"""What ``queue``, ``dlq`` and ``decode`` share: a connection, and words for payloads."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from dialback.cli.logs import set_up_logs
from dialback.cli.output import json_text
from dialback.errors import DeserializationError, ProtocolError
from dialback.ingress.request import Rejection, parse_unary
from dialback.outcomes import Delivery
from dialback.queue.client import QueueClient
from dialback.queue.inspector import Inspector
from dialback.settings import Settings
from dialback.transport.items import decode_value
from dialback.transport.messages import PayloadCodec
from dialback.transport.two_part import decode

DEFAULT_TIMEOUT: Final = 5.0
"""Seconds for the connect, and for each answer."""
DEFAULT_MAX_BYTES: Final = 4096
"""Longest body that is shown whole."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an operator looks.

    Attributes:
        server: URL of the nats-server; the environment's if None.
        timeout: Seconds for the connect, and for each answer.
    """

    server: str | None
    timeout: float = DEFAULT_TIMEOUT

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[tuple[QueueClient, Settings]]:
        """Connect as an operator; the settings are the environment's.

        Raises:
            ConfigError: If the environment's settings are wrong.
            ServerUnavailableError: If no server answers in time.
        """
        settings = Settings.load(server=self.server)
        set_up_logs("WARNING", settings.log_format)
        client = await QueueClient.open(
            settings.server_address(), name="dialback-cli", role="operator", within=self.timeout
        )
        try:
            yield client, settings
        finally:
            await client.close()

    @asynccontextmanager
    async def inspector(self) -> AsyncGenerator[Inspector]:
        """Connect as an operator who looks into queues; raises what :meth:`client` does."""
        async with self.client() as (client, _):
            yield Inspector(client, timeout=self.timeout)


def refusal_of(delivery: Delivery) -> dict[str, Any] | None:
    """Return why a worker would refuse a message, or ``None`` if it would serve it."""
    parsed = parse_unary(delivery)
    if not isinstance(parsed, Rejection):
        return None
    told = str(parsed.call_home.address) if parsed.call_home else None
    return {"outcome": parsed.outcome.value, "reason": parsed.reason, "answered_at": told}


def refusal_text(refusal: Mapping[str, Any]) -> str:
    """Return a refusal in one line."""
    return f"{refusal['outcome']}: {refusal['reason']}"


def body_of(payload: bytes, codec: str, max_bytes: int) -> dict[str, Any]:
    """Return the body of a request as fields of a record: see :func:`shown_value`."""
    try:
        data = decode(payload).data
    except ProtocolError:
        return {"body": None, "body_truncated": False}
    if not data:
        return {"body": None, "body_truncated": False}
    return shown_value(data, codec, max_bytes)


def shown_value(data: bytes, codec: str, max_bytes: int) -> dict[str, Any]:
    """Return encoded bytes as fields of a record.

    ``body`` is the value; if that is longer than ``max_bytes`` bytes as JSON, or cannot be
    read, it is the beginning of its text, and ``body_truncated`` says whether it was cut.
    """
    try:
        value = decode_value(data, PayloadCodec(codec))
    except (DeserializationError, ValueError):
        value = data.decode("utf-8", errors="backslashreplace")
    shown = cut_value(value, max_bytes)
    return {"body": shown, "body_truncated": shown is not value}


def cut_value(value: object, max_bytes: int) -> object:
    """Return a value, or the beginning of its text if that is longer than ``max_bytes``."""
    text = (value if isinstance(value, str) else json_text(value)).encode()
    if len(text) <= max_bytes:
        return value
    return text[:max_bytes].decode(errors="ignore") + "…"
