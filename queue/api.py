"""The JetStream API in raw JSON, with errors that say what to do.

Only what dialback needs of ``$JS.API``; every read is one request that leaves no consumer
behind. Source: ADR-1, ADR-31; jetstream section 1.3 (why not nats-py's typed configs).
"""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
import orjson
from nats.aio.client import Client

from dialback.errors import (
    NotFoundError,
    PermissionDeniedError,
    QueueError,
    QueueFullError,
    ServerUnavailableError,
    StreamMissingError,
)


class WrongLastSequenceError(QueueError):
    """The subject already has a message (error 10071 of expected-last-subject-sequence)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message as a stream stores it.

    Attributes:
        subject: Its subject.
        sequence: Its sequence.
        time: When it was stored, RFC 3339.
        headers: Its headers (the last value of a repeated one).
        payload: Its bytes.
    """

    subject: str
    sequence: int
    time: str
    headers: dict[str, str]
    payload: bytes


class JetStreamApi:
    """Requests to ``$JS.API`` over one connection."""

    def __init__(self, client: Client, *, timeout: float = 5.0) -> None:
        """Use a connected client; ``timeout`` is seconds for each request."""
        self._client = client
        self._timeout = timeout

    async def request(self, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one API request and return its JSON answer.

        Raises:
            NotFoundError: If the stream, consumer or message does not exist.
            ServerUnavailableError: If nobody answers.
            QueueError: Whatever else the server says.
        """
        payload = orjson.dumps(body) if body is not None else b""
        try:
            reply = await self._client.request(f"$JS.API.{verb}", payload, timeout=self._timeout)
        except nats.errors.NoRespondersError as error:
            raise ServerUnavailableError(
                "JetStream does not answer: start nats-server with -js,"
                " or wait until the cluster has a leader"
            ) from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            raise ServerUnavailableError(
                f"no answer to {verb} in {self._timeout:g} s (server busy, or this user"
                " has no permission for it)"
            ) from error
        except nats.errors.Error as error:
            raise ServerUnavailableError(f"NATS: {error}") from error
        answer: dict[str, Any] = orjson.loads(reply.data)
        if "error" in answer:
            raise api_error(answer["error"], verb)
        return answer

    async def stream_info(self, stream: str) -> dict[str, Any]:
        """Return a stream's configuration and state."""
        return await self.request(f"STREAM.INFO.{stream}")

    async def stream_names(self, *, subject: str | None = None) -> list[str]:
        """Return the names of all streams, or of those that take a subject."""
        names: list[str] = []
        wanted = {"subject": subject} if subject is not None else {}
        while True:
            page = await self.request("STREAM.NAMES", {"offset": len(names)} | wanted)
            names += page.get("streams") or []
            if len(names) >= page["total"] or not page.get("streams"):
                return names

    async def create_stream(self, config: dict[str, Any]) -> dict[str, Any]:
        """Create a stream (the same configuration again changes nothing)."""
        return await self.request(f"STREAM.CREATE.{config['name']}", config)

    async def consumer_info(self, stream: str, consumer: str) -> dict[str, Any]:
        """Return a consumer's configuration and state."""
        return await self.request(f"CONSUMER.INFO.{stream}.{consumer}")

    async def create_consumer(self, stream: str, config: dict[str, Any]) -> dict[str, Any]:
        """Create a consumer; one that exists with another configuration is an error."""
        verb = f"CONSUMER.CREATE.{stream}.{config['name']}.{config['filter_subject']}"
        body = {"stream_name": stream, "config": config, "action": "create"}
        return await self.request(verb, body)

    async def get_message(
        self, stream: str, *, sequence: int = 1, subject: str | None = None
    ) -> StoredMessage:
        """Return the first message at or after ``sequence`` whose subject matches.

        Raises:
            NotFoundError: If there is none.
        """
        query = {"seq": sequence, "next_by_subj": subject or ">"}
        return _stored((await self.request(f"STREAM.MSG.GET.{stream}", query))["message"])

    async def get_exact(self, stream: str, sequence: int) -> StoredMessage:
        """Return the message with exactly this sequence.

        Raises:
            NotFoundError: If there is none.
        """
        return _stored(
            (await self.request(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
        )

    async def get_last(self, stream: str, subject: str) -> StoredMessage:
        """Return the newest message of a subject.

        Raises:
            NotFoundError: If there is none.
        """
        query = {"last_by_subj": subject}
        return _stored((await self.request(f"STREAM.MSG.GET.{stream}", query))["message"])

    async def messages(self, stream: str, *, limit: int) -> AsyncIterator[StoredMessage]:
        """Yield the first ``limit`` messages, without a consumer."""
        sequence = 1
        for _ in range(limit):
            try:
                message = await self.get_message(stream, sequence=sequence)
            except NotFoundError:
                return
            yield message
            sequence = message.sequence + 1

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Delete one message.

        Raises:
            NotFoundError: If it is not there (any more).
        """
        await self.request(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})


_ERROR_OF_CODE: Final[dict[int, type[QueueError]]] = {
    10059: NotFoundError,  # stream not found
    10014: NotFoundError,  # consumer not found
    10037: NotFoundError,  # no message found
    10043: NotFoundError,  # no such sequence, of a deletion
    10071: WrongLastSequenceError,
    10164: WrongLastSequenceError,  # another message of the subject is being stored
    10077: QueueFullError,  # maximum messages or bytes exceeded
    10002: QueueFullError,  # the account's limits
    10023: QueueFullError,  # insufficient resources
    10028: QueueFullError,  # insufficient memory
    10047: QueueFullError,  # insufficient storage
    10167: QueueFullError,  # too many buffered requests
    10004: ServerUnavailableError,  # incomplete results
    10007: ServerUnavailableError,  # not assigned to this server
    10008: ServerUnavailableError,  # no leader of the cluster
    10009: ServerUnavailableError,  # not the leader
    10041: ServerUnavailableError,  # Raft
    10076: ServerUnavailableError,  # without -js; also of a server that is shutting down
    10118: ServerUnavailableError,  # stream offline
    10119: ServerUnavailableError,  # consumer offline
    10158: ServerUnavailableError,  # a message of this id is being stored
}
_ERROR_OF_STATUS: Final[dict[int, type[QueueError]]] = {
    403: PermissionDeniedError,
    404: NotFoundError,
}
# The store's own errors come under the number of what was asked; only the text tells them apart.
_ERROR_OF_TEXT: Final[dict[tuple[int, str], type[QueueError]]] = {
    (10077, "store is closed"): ServerUnavailableError,
    (10057, "store is closed"): ServerUnavailableError,
    (10057, "no message found"): NotFoundError,
    (10057, "stream store EOF"): NotFoundError,  # behind the last message
}
_ADVICE: Final[dict[int, str]] = {
    10077: "the stream is at its max_msgs, max_bytes or max_msgs_per_subject",
    10002: "the NATS account is at its JetStream limits",
    10023: "the server has no room: see max_file and max_mem of its JetStream",
    10028: "the server is at its JetStream max_mem",
    10047: "the server is at its JetStream max_file",
    10167: "more publishes wait than the stream buffers (max_buffered_msgs, max_buffered_size)",
    10039: "switch JetStream on for this NATS account",
    10076: "this nats-server runs without JetStream (-js)",
}


def api_error(error: dict[str, Any], verb: str) -> QueueError:
    """Return our error for the server's numeric code."""
    code, description = int(error.get("err_code", 0)), str(error.get("description", "error"))
    sentence = f"{description} ({verb}, error {code})"
    if by_text := _ERROR_OF_TEXT.get((code, description)):
        return by_text(sentence)
    by_status = _ERROR_OF_STATUS.get(int(error.get("code", 0)), QueueError)
    kind = _ERROR_OF_CODE.get(code, by_status)
    return kind(f"{sentence}: {_ADVICE[code]}" if code in _ADVICE else sentence)


def stream_missing(endpoint: object) -> StreamMissingError:
    """Return the error of an endpoint that has no stream."""
    return StreamMissingError(
        f"no queue for endpoint {endpoint}: no stream takes its messages. Start a worker for it"
        f" once (dialback worker run ENGINE --endpoint {endpoint}), or correct the name"
    )


def _stored(message: dict[str, Any]) -> StoredMessage:
    return StoredMessage(
        subject=message["subject"],
        sequence=message["seq"],
        time=message["time"],
        headers=parse_headers(base64.b64decode(message.get("hdrs") or "")),
        payload=base64.b64decode(message.get("data") or ""),
    )


def parse_headers(block: bytes) -> dict[str, str]:
    """Return the headers of a ``NATS/1.0`` header block."""
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers
