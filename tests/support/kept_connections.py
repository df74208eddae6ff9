"""Both ends of a back-channel whose connections are kept."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dialback.ingress.context import Context
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.items import encode_final, encode_item
from dialback.transport.line import Resumable
from dialback.transport.listener import ResponseListener
from dialback.transport.messages import (
    PayloadCodec,
    ResumeOffer,
)
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import (
    EndState,
    WorkerEnd,
    WorkerEvent,
)
from dialback.transport.sender import ResponseSender
from support.listening import address_of
from support.scripted_requester import CallHome, ScriptedRequester

JSON = PayloadCodec.JSON
CODECS = list(PayloadCodec)
PATIENT = 1000.0
"""Seconds that no test waits."""
KEEPING = DialSettings(attempts=1, linger=PATIENT, idle_timeout=PATIENT)
FRESH = ResumeOffer(delivery=1, epoch=5, fresh=True, reuse=True)
NEXT = ResumeOffer(delivery=2, epoch=5, reuse=True)
RELEASE = bytes.fromhex(
    "000000000000000d000000000000000000000000000000007b2272656c65617365223a317d"
)
OFFERED = b'{"subject":"s","stream_type":"response","resume":1,"delivery":%b}'
LARGE = "x" * 1_000_000


def reusing(subject: str, offer: ResumeOffer = FRESH) -> bytes:
    """A handshake that says that its worker keeps the connection."""
    return WorkerEnd().handshake(subject, offer)


class Heard:
    """What a worker's sender is told."""

    def __init__(self, sender: ResponseSender) -> None:
        self.events: list[WorkerEvent] = []
        self._told = asyncio.Event()
        sender.on_event(self._hear)

    def _hear(self, event: WorkerEvent) -> None:
        self.events.append(event)
        self._told.set()

    def forget(self) -> None:
        """What was told until now counts no more."""
        self.events.clear()
        self._told.clear()

    async def first(self) -> WorkerEvent:
        await self._told.wait()
        return self.events[0]


class Ends:
    """A worker that keeps connections, and the requester that it dials."""

    def __init__(self, listener: ResponseListener) -> None:
        self.listener = listener
        self.dialer = Dialer(CallHomePolicy(), KEEPING)

    def register(
        self, codec: PayloadCodec = JSON, *, history_bytes: int = 0, resumable: bool = True
    ) -> ResponseReceiver:
        resume = Resumable(timeout=PATIENT, history_bytes=history_bytes) if resumable else None
        return self.listener.register(codec, resume=resume)

    async def dial(self, receiver: ResponseReceiver, offer: ResumeOffer = FRESH) -> ResponseSender:
        return await self.dialer.dial(address_of(self.listener), receiver.subject, offer=offer)

    async def stream(self, *values: Any, codec: PayloadCodec = JSON) -> ResponseSender:
        """Serve a whole stream and see that it arrives."""
        receiver = self.register(codec)
        sender = await self.dial(receiver)
        reading = asyncio.create_task(rest(receiver))
        await serve(sender, *values, codec=codec)
        assert await reading == list(values)
        assert (receiver.end, receiver.interruptions) == (EndState.COMPLETE, 0)
        return sender

    async def kept(self) -> ResponseSender:
        """Leave a connection behind, and nothing else."""
        sender = await self.stream("first")
        assert (sender.dials, self.listener.connections) == (1, 1)
        return sender


async def serve(sender: ResponseSender, *values: Any, codec: PayloadCodec = JSON) -> None:
    """Write a stream as a worker does, to its end in order."""
    sender.write_prologue()
    for value in values:
        sender.write_item(encode_item(value, codec))
        await sender.breathe()
    sender.write_end(encode_final(codec))
    await sender.finish()
    sender.abort()  # as the ingress does: it changes nothing


async def rest(receiver: ResponseReceiver) -> list[Any]:
    items: list[Any] = []
    while True:
        try:
            items.append(await receiver.next_item())
        except StopAsyncIteration:
            return items


async def said_to(address: Address, *frames: bytes) -> bytes:
    """All that the requester writes up to its FIN; a reset is an error."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"".join(frames))
    try:
        return await reader.read()
    finally:
        writer.close()


async def released(
    requester: ScriptedRequester, behind: bytes = b""
) -> tuple[Dialer, ResponseSender, CallHome]:
    """Serve a stream that is answered with a release and more."""
    dialer = Dialer(CallHomePolicy(), KEEPING)
    sender = await dialer.dial(Address("127.0.0.1", requester.port), "s", offer=FRESH)
    serving = asyncio.create_task(serve(sender, 1))
    home = await requester.connection()
    await home.frames()
    await home.send(RELEASE + behind)
    await serving
    return dialer, sender, home


class OneItem:
    """An engine with one item for each request."""

    resume = "continue"

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        if context.resume_from == 0:
            yield request
