"""The composition root of a caller: publish a request, listen, iterate its stream.

One listener and one NATS connection for a whole process; any number of concurrent streams.
Source: overview sections 2 and 4 (first step), protocol section 8.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from dialback.errors import (
    DeadlineExceededError,
    DuplicateRequestError,
    QueueError,
    RequestTimeoutError,
    StreamMissingError,
)
from dialback.ingress.context import Context
from dialback.queue.api import stream_missing
from dialback.queue.client import QueueClient
from dialback.queue.publisher import PubAck
from dialback.queue.topology import Lane
from dialback.request import Request
from dialback.settings import Settings
from dialback.transport.listener import ResponseListener, local_address_towards
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import EndState

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds until the first item."""
DEFAULT_DEADLINE: Final = 600.0
"""Seconds for the whole stream."""
_ROOM_FOR_DEAD_LETTER: Final = 1024  # bytes; a dead letter carries more headers than its request


class ResponseStream:
    """One request and its answers: enter it to publish, iterate it, leave it.

    Leaving the block before the end kills the stream on both sides.

    Attributes:
        request_id: The request's id.
        endpoint: Where it was sent.
    """

    def __init__(self, requester: "Requester", request: Request) -> None:
        self.request_id = request.request_id
        self.endpoint = str(request.endpoint)
        self._requester = requester
        self._request = request
        self._entered: ResponseReceiver | None = None
        self._link: _Link | None = None
        self._ack: PubAck | None = None
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def end(self) -> EndState | None:
        """``complete``, ``cancelled`` or ``broken``; ``None`` while the stream goes on."""
        return self._entered.end if self._entered is not None else None

    @property
    def items(self) -> int:
        """Items handed to you so far."""
        return self._entered.items if self._entered is not None else 0

    @property
    def interruptions(self) -> int:
        """Workers lost before the stream had ended."""
        return self._entered.interruptions if self._entered is not None else 0

    async def __aenter__(self) -> Self:
        """Publish the request.

        Raises:
            RuntimeError: If the stream was entered before, or the requester is closed.
            StreamMissingError: If no worker has ever created the endpoint's queue.
            QueueFullError: If the queue refuses more requests.
            PayloadTooLargeError: If the request is too large for the server.
            DuplicateRequestError: If its id was used within the last 10 minutes.
            ServerUnavailableError: If the server does not acknowledge for 30 s.
            RequestTimeoutError: If it does not within ``timeout``.
        """
        if self._entered is not None:
            raise RuntimeError("a stream can be entered once; ask for another")
        self._entered = self._requester.register(self._request)
        self._start()
        try:
            self._ack = await self._requester.publish(self._request, self._entered)
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
            ResponseError: For an error item, as the class of :mod:`dialback.errors` that
                the engine raised; what follows can still be read.
            StreamInterrupted: If the stream ended before its final.
        """
        return await self._receiver.next_item()

    async def stop(self) -> None:
        """Ask the engine to finish early; what it has produced still arrives."""
        self._receiver.stop()

    async def kill(self) -> None:
        """End the stream at once; a request that nobody has taken yet is removed."""
        receiver = self._receiver
        unserved = not receiver.connected and receiver.end is not EndState.COMPLETE
        receiver.kill()
        if unserved and self._ack is not None:
            ack, self._ack = self._ack, None
            await self._requester.withdraw(ack)

    @property
    def _receiver(self) -> ResponseReceiver:
        if self._entered is None:
            raise RuntimeError("enter the stream first: async with requester.generate(...) as ...")
        return self._entered

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        request = self._request
        self._timers = [
            loop.call_later(request.timeout, self._first_item_is_late),
            loop.call_later(request.deadline, self._deadline_passed),
        ]
        if request.context is not None:
            self._link = _Link(self._receiver)
            request.context.link_child(self._link)

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
        if self._link is not None and self._request.context is not None:
            self._request.context.unlink_child(self._link)
        self._receiver.kill()


class _Link:
    """Passes a context's stop and kill on to a stream that was asked for in its course."""

    def __init__(self, receiver: ResponseReceiver) -> None:
        self._receiver = receiver

    def stop_generating(self) -> None:
        self._receiver.stop()

    def kill(self) -> None:
        self._receiver.kill()


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
        context: Context | None = None,
    ) -> ResponseStream:
        """Return the stream of one request; it is published when the stream is entered.

        Args:
            endpoint: ``namespace.component.endpoint``.
            request: A JSON-able value.
            timeout: Seconds until the first item.
            deadline: Seconds for the whole stream.
            lane: ``high``, ``normal`` or ``low``.
            request_id: Id of the request; a UUID by default. The same id within the
                stream's duplicate window (10 minutes) is refused.
            metadata: String map for the engine.
            headers: NATS headers to send along, ``traceparent`` for instance.
            codec: ``json`` or ``msgpack``, if not the settings' one.
            context: The context of the request in whose course this one is sent: its stop
                and kill are passed on, its metadata and trace headers sent along.

        Raises:
            ConfigError: If an argument is wrong.
            SerializationError: If the request cannot be written in the codec.
            PayloadTooLargeError: If id and metadata are over 128 KiB.
            RuntimeError: If the requester was not started.
        """
        self._started()
        prepared = Request.prepare(
            endpoint,
            request,
            timeout=timeout,
            deadline=deadline,
            lane=lane,
            codec=codec or self._settings.codec,
            request_id=request_id,
            metadata=metadata,
            headers=headers,
            context=context,
        )
        return ResponseStream(self, prepared)

    def register(self, request: Request) -> ResponseReceiver:
        """Register a stream subject for a request; used by :class:`ResponseStream`."""
        return self._started()[1].register(request.codec)

    async def publish(self, request: Request, receiver: ResponseReceiver) -> PubAck:
        """Publish a request that ``receiver`` waits for; used by :class:`ResponseStream`."""
        client, _ = self._started()
        payload = request.payload(receiver.subject, self.address)
        try:
            async with asyncio.timeout(request.patience):
                ack = await client.publisher.publish(
                    request.subject, payload, request.headers(), room=_ROOM_FOR_DEAD_LETTER
                )
        except StreamMissingError as error:
            raise stream_missing(request.endpoint) from error
        except TimeoutError as error:
            raise RequestTimeoutError(
                f"the nats-server did not acknowledge the request within {request.patience:g} s"
            ) from error
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
