"""Reading many stored messages in one request, without a consumer.

Source: ADR-31 (direct get in batches, nats-server 2.11). An older server answers with one
message and no end mark: reading goes on, one message for each ``timeout``.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from dialback.errors import ServerUnavailableError
from dialback.queue.api import StoredMessage

MAX_BYTES: Final = 4 * 1024 * 1024
"""Bytes of one answer: payloads come along, and have to fit into a client's buffers."""

_ADDED: Final = frozenset(  # by the server, to say where the message is stored
    {
        "nats-stream",
        "nats-subject",
        "nats-sequence",
        "nats-time-stamp",
        "nats-num-pending",
        "nats-last-sequence",
    }
)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one request read.

    Attributes:
        messages: The messages, in the order of the stream.
        more: Whether there are others behind them.
    """

    messages: tuple[StoredMessage, ...] = ()
    more: bool = False


async def read_batch(
    client: Client,
    stream: str,
    *,
    subject: str,
    sequence: int = 1,
    limit: int = 256,
    timeout: float = 5.0,  # noqa: ASYNC109 -- of one answer, as in JetStreamApi
) -> Batch:
    """Return at most ``limit`` messages of a subject filter, from a sequence on.

    Args:
        client: A connected client.
        stream: Which stream; it needs ``allow_direct``.
        subject: Filter, wildcards allowed.
        sequence: Where to begin.
        limit: How many messages at most.
        timeout: Seconds to wait for each next message.

    Raises:
        ServerUnavailableError: If nobody answers.
    """
    query = {"seq": sequence, "next_by_subj": subject, "batch": limit, "max_bytes": MAX_BYTES}
    inbox = await client.subscribe(  # pyright: ignore[reportUnknownMemberType]
        client.new_inbox()
    )
    found: list[StoredMessage] = []
    try:
        await client.publish(
            f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(query), reply=inbox.subject
        )
        while True:
            answer = await inbox.next_msg(timeout=timeout)
            headers = _headers(answer)
            if (status := headers.get("Status")) is not None:
                return _end(stream, tuple(found), status, headers)
            found.append(_stored(answer, headers))
    except (nats.errors.Error, TimeoutError) as error:
        if found:
            return Batch(tuple(found), more=True)
        raise ServerUnavailableError(
            f"no answer to a direct get of {stream} in {timeout:g} s (server busy, or this user"
            " has no permission for it)"
        ) from error
    finally:
        await _drop(inbox)


async def _drop(inbox: Any) -> None:
    with suppress(nats.errors.Error):  # of a closed connection: then so is the inbox
        await inbox.unsubscribe()


def _headers(message: Msg) -> dict[str, str]:
    return {str(name): value for name, value in (message.headers or {}).items()}


def _end(
    stream: str, found: tuple[StoredMessage, ...], status: str, headers: dict[str, str]
) -> Batch:
    match status:
        case "204":
            return Batch(found, more=int(headers.get("Nats-Num-Pending", "0")) > 0)
        case "404":
            return Batch(found)
        case _:
            raise ServerUnavailableError(f"direct get of {stream} was answered with {status}")


def _stored(message: Msg, headers: dict[str, str]) -> StoredMessage:
    return StoredMessage(
        subject=headers["Nats-Subject"],
        sequence=int(headers["Nats-Sequence"]),
        time=headers["Nats-Time-Stamp"],
        headers={name: value for name, value in headers.items() if name.lower() not in _ADDED},
        payload=message.data,
    )
