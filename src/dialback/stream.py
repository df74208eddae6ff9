"""One request and its answers, as its caller has them: enter, iterate, stop, leave.

Source: overview sections 2 and 4, protocol section 8.
"""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self

from dialback.errors import DeadlineExceededError, RequestTimeoutError
from dialback.queue.publisher import PubAck
from dialback.request import Request
from dialback.transport.line import Interruption
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import EndState


class Sender(Protocol):
    """What a stream needs of its requester."""

    @property
    def address(self) -> str:
        """Address that workers dial."""
        ...

    def register(
        self, request: Request, on_interruption: Callable[[Interruption], None] | None
    ) -> ResponseReceiver:
        """Register a stream subject for a request."""
        ...

    def entered(self, stream: "ResponseStream") -> None:
        """Take note of a stream that is in use."""
        ...

    def left(self, stream: "ResponseStream") -> None:
        """Forget a stream."""
        ...

    async def publish(self, request: Request, receiver: ResponseReceiver) -> PubAck:
        """Publish a request that ``receiver`` waits for."""
        ...

    async def withdraw(self, ack: PubAck) -> None:
        """Remove a request that no worker serves."""


class ResponseStream:
    """One request and its answers: enter it to publish, iterate it, leave it.

    Leaving the block before the end kills the stream on both sides.

    Attributes:
        request_id: The request's id.
        endpoint: Where it was sent.
    """

    def __init__(
        self,
        sender: Sender,
        request: Request,
        on_interruption: Callable[[Interruption], None] | None = None,
    ) -> None:
        self.request_id = request.request_id
        self.endpoint = str(request.endpoint)
        self._sender = sender
        self._request = request
        self._on_interruption = on_interruption
        self._entered: ResponseReceiver | None = None
        self._link: _Link | None = None
        self._ack: PubAck | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._queueing = asyncio.Lock()  # publish and withdraw: one after the other

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

    @property
    def resumed(self) -> int:
        """Workers that went on with the stream where another one had been lost."""
        return self._entered.resumed if self._entered is not None else 0

    @property
    def delivery(self) -> int:
        """Which delivery of the request its worker serves: 1 is the first.

        0 before a worker has dialled back, or if it did not say.
        """
        return self._entered.delivery if self._entered is not None else 0

    async def __aenter__(self) -> Self:
        """Publish the request.

        Raises:
            RuntimeError: If the stream was entered before, or the requester is closed or
                belongs to another event loop.
            StreamMissingError: If no worker has ever created the endpoint's queue.
            QueueFullError: If the queue refuses more requests.
            PayloadTooLargeError: If the request is too large for the server.
            DuplicateRequestError: If its id was used within the last 10 minutes.
            ServerUnavailableError: If the server does not acknowledge for 30 s.
            RequestTimeoutError: If it does not within ``timeout``. The request may be stored all
                the same; then it expires by its own deadline, and a worker that serves it before
                that finds nobody who listens.
        """
        if self._entered is not None:
            raise RuntimeError("a stream can be entered once; ask for another")
        self._entered = self._sender.register(self._request, self._on_interruption)
        self._start()
        try:
            async with self._queueing:
                self._ack = await self._sender.publish(self._request, self._entered)
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
        try:
            if self.end is not EndState.COMPLETE:
                await self.kill()
        finally:
            self._finish()  # also if the withdrawal is cancelled

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        """Return the next item as the engine yielded it.

        Raises:
            RequestTimeoutError: If no first item came within ``timeout``.
            DeadlineExceededError: If the stream did not end within ``deadline``.
            EngineRefusedError: If the engine refused the request.
            ResponseError: For an error item, as the class of :mod:`dialback.errors` that
                the engine raised; what follows can still be read.
            StreamInterrupted: If the stream ended before its final and nobody can go on with it.
            RuntimeError: If another task waits for the next item: a stream has one reader.
        """
        return self._receiver.next_item()  # not awaited here: one coroutine for an item, not two

    async def stop(self) -> None:
        """Ask the engine to finish early; what it has produced still arrives.

        A stream whose worker was lost ends, and its request is removed.
        """
        self._receiver.stop()
        await self._withdraw()

    async def kill(self) -> None:
        """End the stream at once; a request that nobody has taken yet is removed."""
        self._receiver.kill()
        await self._withdraw()

    async def interrupt(self, why: str) -> None:
        """End the stream as interrupted, as :meth:`kill` does; used by its requester."""
        self._receiver.interrupt(why)
        await self._withdraw()

    async def _withdraw(self) -> None:
        """Remove the request of a stream that ended without a worker."""
        receiver = self._receiver
        if receiver.connected or receiver.end in (None, EndState.COMPLETE):
            return
        async with self._queueing:
            ack, self._ack = self._ack, None
            if ack is not None:
                await self._sender.withdraw(ack)

    @property
    def _receiver(self) -> ResponseReceiver:
        if self._entered is None:
            raise RuntimeError("enter the stream first: async with requester.generate(...) as ...")
        return self._entered

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        request = self._request
        self._sender.entered(self)
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
                f" and may it dial {self._sender.address} (DIALBACK_CALL_HOME_NETWORKS)?"
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
        self._sender.left(self)


class _Link:
    """Passes a context's stop and kill on to a stream that was asked for in its course."""

    def __init__(self, receiver: ResponseReceiver) -> None:
        self._receiver = receiver

    def stop_generating(self) -> None:
        self._receiver.stop()

    def kill(self) -> None:
        self._receiver.kill()
