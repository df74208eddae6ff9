"""The composition root of a caller: publish a request, listen, iterate its stream.

One listener and one NATS connection for a whole process; any number of concurrent streams.
Source: overview sections 2 and 4 (first step), protocol section 8.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final, Self

from dialback.errors import (
    ConfigError,
    DuplicateRequestError,
    RequestTimeoutError,
    StreamMissingError,
)
from dialback.ingress.context import Context
from dialback.queue.api import stream_missing
from dialback.queue.client import QueueClient
from dialback.queue.publisher import PubAck
from dialback.queue.topology import Lane
from dialback.request import Request, resumption
from dialback.scopes import Scope
from dialback.settings import Settings
from dialback.stream import ResponseStream
from dialback.tasks import cancel_and_wait
from dialback.transport.line import Interruption
from dialback.transport.listener import ResponseListener, local_address_towards
from dialback.transport.receiver import ResponseReceiver
from dialback.withdrawal import WITHDRAWAL, Recalls, withdraw

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds until the first item."""
DEFAULT_DEADLINE: Final = 600.0
"""Seconds for the whole stream."""
DEFAULT_RESUME_TIMEOUT: Final = 60.0
"""Seconds without any worker: twice the lease, after which a killed worker's request is free."""
_ROOM_FOR_DEAD_LETTER: Final = 1024  # bytes; a dead letter carries more headers than its request


class Requester:
    """Sends requests to endpoints and receives their streams.

    Use as an async context manager, or call :meth:`start` and :meth:`close`. It belongs to the
    event loop that it was started in.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Prepare; nothing is opened before :meth:`start`.

        Raises:
            ConfigError: If no settings are given and the environment's are wrong.
        """
        self._settings = settings or Settings.load()
        self._client: QueueClient | None = None
        self._listener: ResponseListener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # since start() was called
        self._streams: set[ResponseStream] = set()
        self._recalls = Recalls()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect to NATS and listen for workers.

        Raises:
            RuntimeError: If it is started already, here or in another event loop.
            ServerUnavailableError: If no server answers.
            ConfigError: If the listening address is not this machine's.
        """
        self._check_loop()
        if self._loop is not None:
            raise RuntimeError("the requester is started already")
        self._loop = asyncio.get_running_loop()
        try:
            self._client, self._listener = await self._open()
        except BaseException:
            self._loop = None
            raise

    async def _open(self) -> tuple[QueueClient, ResponseListener]:
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
        return client, listener

    async def close(self) -> None:
        """Interrupt what is still streaming, stop listening, disconnect.

        Running streams fail with ``StreamInterrupted`` and their workers are told to end;
        requests that no worker serves are removed, for which all together have 5 s.

        Raises:
            RuntimeError: If it was started in another event loop.
        """
        self._check_loop()
        listener, self._listener = self._listener, None
        try:
            await self._interrupt_streams()
        finally:
            client, self._client = self._client, None
            if client is not None:
                self._loop = None
            if listener is not None:
                await listener.close()
            if client is not None:
                await client.close()

    async def _interrupt_streams(self) -> None:
        why = "the requester was closed"
        tasks = [asyncio.create_task(stream.interrupt(why)) for stream in self._streams]
        tasks += self._recalls.running
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=WITHDRAWAL)
        finally:
            await cancel_and_wait(*tasks, within=0.0)

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
        resumable: bool = True,
        resume_timeout: float = DEFAULT_RESUME_TIMEOUT,
        keep_history: bool | int = False,
        on_interruption: Callable[[Interruption], None] | None = None,
    ) -> ResponseStream:
        """Return the stream of one request; it is published when the stream is entered.

        Args:
            endpoint: ``namespace.component.endpoint``.
            request: A JSON-able value.
            timeout: Seconds until the first item.
            deadline: Seconds for the whole stream.
            lane: ``high``, ``normal`` or ``low``.
            request_id: Id of the request; a UUID by default. The same id within the
                stream's duplicate window (10 minutes) is refused. A request with an id of yours
                is not withdrawn if you leave before it is acknowledged.
            metadata: String map for the engine.
            headers: NATS headers to send along, ``traceparent`` for instance.
            codec: ``json`` or ``msgpack``, if not the settings' one.
            context: The context of the request in whose course this one is sent: its stop
                and kill are passed on, its metadata and trace headers sent along.
            resumable: Whether another worker may go on when one is lost in mid-stream, if the
                engine can. ``False`` sends plain bytes; only a worker that is lost before the
                first item is then replaced.
            resume_timeout: Seconds to wait for that worker; then ``StreamInterrupted``.
            keep_history: Keep the items for the next worker's ``context.delivered``, up to
                16 MiB or so many bytes (64 MiB at most); a stream with more has no history.
            on_interruption: Called on the event loop for each worker that is lost.

        Raises:
            ConfigError: If an argument is wrong.
            SerializationError: If the request cannot be written in the codec.
            PayloadTooLargeError: If id and metadata are over 128 KiB.
            RuntimeError: If the requester was not started.
        """
        self._started()
        if on_interruption is not None and not callable(on_interruption):
            raise ConfigError(f"on_interruption {on_interruption!r} cannot be called")
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
            resume=resumption(resumable, resume_timeout, keep_history),
        )
        return ResponseStream(self, prepared, on_interruption)

    def register(
        self, request: Request, on_interruption: Callable[[Interruption], None] | None
    ) -> ResponseReceiver:
        """Register a stream subject for a request; used by :class:`ResponseStream`.

        Raises:
            RuntimeError: If the requester is not started, or was in another event loop.
        """
        self._check_loop()
        return self._started()[1].register(
            request.codec, resume=request.resume, on_interruption=on_interruption
        )

    def entered(self, stream: ResponseStream) -> None:
        """Take note of a stream that is in use; used by :class:`ResponseStream`."""
        self._streams.add(stream)

    def left(self, stream: ResponseStream) -> None:
        """Forget a stream; used by :class:`ResponseStream`."""
        self._streams.discard(stream)

    async def publish(self, request: Request, receiver: ResponseReceiver) -> PubAck:
        """Publish a request that ``receiver`` waits for; used by :class:`ResponseStream`."""
        client, listener = self._started()
        payload = request.payload(receiver.subject, str(listener.address))
        publishing = client.publisher.publish(
            request.subject, payload, request.headers(), room=_ROOM_FOR_DEAD_LETTER
        )
        try:
            ack = await Scope().run(publishing, within=request.patience)
        except asyncio.CancelledError:
            self._recalls.begin(client, request)
            raise
        except StreamMissingError as error:
            raise stream_missing(request.endpoint) from error
        if ack is None:
            raise RequestTimeoutError(
                f"the nats-server did not acknowledge the request within {request.patience:g} s."
                " It may be stored all the same; then it expires by its own deadline"
            )
        if ack.duplicate and ack.attempts == 1:
            raise DuplicateRequestError(
                f"request id {request.request_id!r} was used within the last 10 minutes:"
                " nothing was stored. Use another id, or none"
            )
        return ack

    async def withdraw(self, ack: PubAck) -> None:
        """Remove a request that no worker serves; best effort, its headers expire it anyway."""
        if self._client is not None:
            await withdraw(self._client, ack)

    def _check_loop(self) -> None:
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise RuntimeError("this requester belongs to another event loop; start one in each")

    def _started(self) -> tuple[QueueClient, ResponseListener]:
        if self._client is None or self._listener is None:
            raise RuntimeError("the requester is not started: use `async with Requester() as ...`")
        return self._client, self._listener
