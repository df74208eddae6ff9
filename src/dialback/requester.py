"""The composition root of a caller: publish a request, listen, iterate its stream.

One listener and one NATS connection for a whole process; any number of concurrent streams.
Source: overview sections 2 and 4 (first step), protocol section 8.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from dialback.errors import (
    DeadlineExceededError,
    DialbackError,
    DuplicateRequestError,
    PayloadTooLargeError,
    QueueError,
    RequestTimeoutError,
    StreamMissingError,
)
from dialback.queue.api import stream_missing
from dialback.queue.client import QueueClient
from dialback.queue.dead_letter import subject_token
from dialback.queue.publisher import MESSAGE_ID_HEADER, PubAck
from dialback.queue.topology import Endpoint, Lane
from dialback.settings import Settings
from dialback.transport.items import encode_value
from dialback.transport.listener import ResponseListener, local_address_towards
from dialback.transport.messages import (
    PayloadCodec,
    RequestControlMessage,
    RequestType,
    ResponseType,
    StreamType,
    TcpConnectionInfo,
    encode_request_control,
    encode_tcp_info,
)
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.request_headers import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    SEND_TIME_HEADER,
    START_BY_HEADER,
)
from dialback.transport.response_stream import EndState
from dialback.transport.two_part import MAX_REQUEST_HEADER_BYTES, encode

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds until the first item."""
DEFAULT_DEADLINE: Final = 600.0
"""Seconds for the whole stream."""
_NS: Final = 1_000_000_000
_ROOM_FOR_DEAD_LETTER: Final = 1024  # bytes; a dead letter carries more headers than its request


class ResponseStream:
    """One request and its answers: enter it to publish, iterate it, leave it.

    Leaving the block before the end kills the stream on both sides.

    Attributes:
        request_id: The request's id.
        endpoint: Where it was sent.
    """

    def __init__(
        self,
        requester: "Requester",
        endpoint: Endpoint,
        request: "_Request",
        receiver: ResponseReceiver,
    ) -> None:
        self.request_id = request.request_id
        self.endpoint = str(endpoint)
        self._requester = requester
        self._request = request
        self._receiver = receiver
        self._ack: PubAck | None = None
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def end(self) -> EndState | None:
        """``complete``, ``cancelled`` or ``broken``; ``None`` while the stream goes on."""
        return self._receiver.end

    @property
    def items(self) -> int:
        """Items handed to you so far."""
        return self._receiver.items

    @property
    def interruptions(self) -> int:
        """Workers lost before the first item, each replaced by the next."""
        return self._receiver.interruptions

    async def __aenter__(self) -> Self:
        """Publish the request.

        Raises:
            StreamMissingError: If no worker has ever created the endpoint's queue.
            QueueFullError: If the queue refuses more requests.
            PayloadTooLargeError: If the request is too large for the server.
            DuplicateRequestError: If its id was used within the last 10 minutes.
            ServerUnavailableError: If the server does not acknowledge in time.
        """
        self._start_timers()
        try:
            self._ack = await self._requester.publish(self._request)
        except BaseException:
            self._finish()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.kill()
        self._finish()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Return the next item as the engine yielded it.

        Raises:
            RequestTimeoutError: If no first item came within ``timeout``.
            DeadlineExceededError: If the stream did not end within ``deadline``.
            EngineRefusedError: If the engine refused the request.
            ResponseError: For an error item; what follows can still be read.
            StreamInterrupted: If the stream ended before its final.
        """
        return await self._receiver.next_item()

    async def stop(self) -> None:
        """Ask the engine to finish early; what it has produced still arrives."""
        self._receiver.stop()

    async def kill(self) -> None:
        """End the stream at once; a request that nobody has taken yet is removed."""
        unserved = not self._receiver.connected and self._receiver.end is not EndState.COMPLETE
        self._receiver.kill()
        if unserved and self._ack is not None:
            ack, self._ack = self._ack, None
            await self._requester.withdraw(ack)

    def _start_timers(self) -> None:
        loop = asyncio.get_running_loop()
        request = self._request
        self._timers = [
            loop.call_later(request.timeout, self._first_item_is_late),
            loop.call_later(request.deadline, self._deadline_passed),
        ]

    def _first_item_is_late(self) -> None:
        if self._receiver.started:
            return
        seconds = f"{self._request.timeout:g} s"
        if self._receiver.dialled:
            what = f"a worker dialled back, but no item came within {seconds}"
        else:
            what = (
                f"no worker dialled back within {seconds}; is one running for {self.endpoint},"
                f" and may it dial {self._requester.address} (DIALBACK_CALL_HOME_NETWORKS)?"
            )
        self._receiver.fail(RequestTimeoutError(what))

    def _deadline_passed(self) -> None:
        seconds = f"{self._request.deadline:g} s"
        self._receiver.fail(DeadlineExceededError(f"the stream did not end within {seconds}"))

    def _finish(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._receiver.kill()


class _Request:
    """A request, ready to be published."""

    def __init__(
        self,
        *,
        request_id: str,
        subject: str,
        payload: bytes,
        endpoint: Endpoint,
        timeout: float,
        deadline: float,
        headers: Mapping[str, str],
    ) -> None:
        self.request_id = request_id
        self.subject = subject
        self.payload = payload
        self.endpoint = endpoint
        self.timeout = timeout
        self.deadline = deadline
        now = time.time_ns()
        self.headers = {
            **headers,
            REQUEST_ID_HEADER: request_id,
            SEND_TIME_HEADER: str(now),
            START_BY_HEADER: str(now + round(min(timeout, deadline) * _NS)),
            DEADLINE_HEADER: str(now + round(deadline * _NS)),
            MESSAGE_ID_HEADER: request_id,
        }


class Requester:
    """Sends requests to endpoints and receives their streams.

    Use as an async context manager, or call :meth:`start` and :meth:`close`.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Prepare; nothing is opened before :meth:`start`.

        Raises:
            ConfigError: If no settings are given and the environment's are wrong.
        """
        self._settings = settings or Settings.load()
        self._client: QueueClient | None = None
        self._listener: ResponseListener | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect to NATS and listen for workers.

        Raises:
            ServerUnavailableError: If no server answers.
            ConfigError: If the listening address is not this machine's.
        """
        settings = self._settings
        client = await QueueClient.open(
            settings.server_address(),
            name=f"dialback-requester-{socket.gethostname()}-{os.getpid()}",
            role="requester",
            within=settings.connect_within,
        )
        listener = ResponseListener(
            host=settings.response_host or local_address_towards(*client.server_host),
            port=settings.response_port,
            advertise=settings.advertise,
            max_item_bytes=settings.max_item_bytes,
        )
        try:
            await listener.start()
        except BaseException:
            await client.close()
            raise
        self._client, self._listener = client, listener

    async def close(self) -> None:
        """Kill what is still streaming, stop listening, disconnect."""
        listener, self._listener = self._listener, None
        client, self._client = self._client, None
        if listener is not None:
            await listener.close()
        if client is not None:
            await client.close()

    @property
    def address(self) -> str:
        """Address that workers dial, as it is written into requests."""
        return str(self._started()[1].address)

    def generate(
        self,
        endpoint: str,
        request: object,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        deadline: float = DEFAULT_DEADLINE,
        lane: str = Lane.NORMAL,
        request_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        codec: str | None = None,
    ) -> ResponseStream:
        """Return the stream of one request; it is published when the stream is entered.

        Args:
            endpoint: ``namespace.component.endpoint``.
            request: A JSON-able value.
            timeout: Seconds until the first item.
            deadline: Seconds for the whole stream.
            lane: ``high``, ``normal`` or ``low``.
            request_id: Id of the request; a UUID by default. The same id within the
                stream's duplicate window (10 minutes) is stored once.
            metadata: String map for the engine.
            headers: NATS headers to send along, ``traceparent`` for instance.
            codec: ``json`` or ``msgpack``, if not the settings' one.

        Raises:
            ConfigError: If the endpoint's name is wrong.
            SerializationError: If the request cannot be written in the codec.
            PayloadTooLargeError: If id and metadata are over 128 KiB.
            RuntimeError: If the requester was not started.
        """
        where = Endpoint.parse(endpoint)
        chosen = PayloadCodec(codec or self._settings.codec)
        body = encode_value(request, chosen)
        _, listener = self._started()
        receiver = listener.register(chosen)
        name = request_id or str(uuid.uuid4())
        try:
            header = _control_message(
                name, receiver.subject, str(listener.address), chosen, metadata
            )
        except DialbackError:
            receiver.kill()
            raise
        prepared = _Request(
            request_id=name,
            subject=where.request_subject(Lane(lane), subject_token(name)),
            payload=encode(header, body),
            endpoint=where,
            timeout=timeout,
            deadline=deadline,
            headers=headers or {},
        )
        return ResponseStream(self, where, prepared, receiver)

    async def publish(self, request: _Request) -> PubAck:
        """Publish a prepared request; used by :class:`ResponseStream`."""
        client, _ = self._started()
        try:
            ack = await client.publisher.publish(
                request.subject, request.payload, request.headers, room=_ROOM_FOR_DEAD_LETTER
            )
        except StreamMissingError as error:
            raise stream_missing(request.endpoint) from error
        if ack.duplicate and ack.attempts == 1:
            raise DuplicateRequestError(
                f"request id {request.request_id!r} was used within the last 10 minutes:"
                " nothing was stored. Use another id, or none"
            )
        return ack

    async def withdraw(self, ack: PubAck) -> None:
        """Remove a request that no worker serves; best effort, its headers expire it anyway."""
        if self._client is None:
            return
        try:
            await self._client.api.delete_message(ack.stream, ack.sequence)
        except QueueError as error:
            logger.debug("request not withdrawn", extra={"reason": str(error), "seq": ack.sequence})

    def _started(self) -> tuple[QueueClient, ResponseListener]:
        if self._client is None or self._listener is None:
            raise RuntimeError("the requester is not started: use `async with Requester() as ...`")
        return self._client, self._listener


def _control_message(
    request_id: str,
    subject: str,
    address: str,
    codec: PayloadCodec,
    metadata: Mapping[str, str] | None,
) -> bytes:
    info = TcpConnectionInfo(
        address=address, subject=subject, context=request_id, stream_type=StreamType.RESPONSE
    )
    header = encode_request_control(
        RequestControlMessage(
            id=request_id,
            request_type=RequestType.SINGLE_IN,
            response_type=ResponseType.MANY_OUT,
            payload_codec=codec,
            connection_info=encode_tcp_info(info),
            metadata=dict(metadata or {}),
        )
    )
    if len(header) > MAX_REQUEST_HEADER_BYTES:
        raise PayloadTooLargeError(len(header), MAX_REQUEST_HEADER_BYTES)
    return header
