import asyncio
import gc
import weakref
from collections.abc import Callable, Generator

import pytest

from dialback.errors import (
    DeadlineExceededError,
    DialbackError,
    RequestTimeoutError,
    ResponseError,
    StreamInterrupted,
)
from dialback.ingress.context import Context
from dialback.queue.publisher import PubAck
from dialback.request import Request
from dialback.stream import ResponseStream
from dialback.transport.line import Interruption
from dialback.transport.receiver import ResponseReceiver

ITEM = b'{"data":{"data":"a"},"complete_final":false}'


class Requesting:
    """A requester without a server: requests are stored nowhere, and withdrawn when it says so."""

    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.streams: set[ResponseStream] = set()
        self.withdrawing = asyncio.Event()
        self.withdrawn = asyncio.Event()

    def register(
        self, request: Request, on_interruption: Callable[[Interruption], None] | None
    ) -> ResponseReceiver:
        def settled(_: ResponseReceiver) -> None:
            """Nobody keeps a table here."""

        self.receiver = ResponseReceiver(
            "s", request.codec, on_settled=settled, on_interruption=on_interruption
        )
        return self.receiver

    def entered(self, stream: ResponseStream) -> None:
        self.streams.add(stream)

    def left(self, stream: ResponseStream) -> None:
        self.streams.discard(stream)

    async def publish(self, request: Request, receiver: ResponseReceiver) -> PubAck:
        assert receiver is self.receiver
        return PubAck(stream=request.endpoint.stream, sequence=1, duplicate=False)

    async def withdraw(self, ack: PubAck) -> None:
        assert ack.sequence == 1
        self.withdrawing.set()
        await self.withdrawn.wait()


def _stream(requesting: Requesting, context: Context | None = None) -> ResponseStream:
    request = Request.prepare(
        "a.b.c",
        {},
        timeout=60,
        deadline=600,
        lane="normal",
        codec="json",
        request_id=None,
        metadata=None,
        headers=None,
        context=context,
    )
    return ResponseStream(requesting, request)


async def test_leaving_that_is_cancelled_while_the_request_is_withdrawn_leaves_nothing() -> None:
    requesting, context = Requesting(), Context("outer")
    stream = await _stream(requesting, context).__aenter__()
    leaving = asyncio.create_task(stream.__aexit__(None, None, None))
    await requesting.withdrawing.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    gone = weakref.ref(stream)
    del stream, leaving
    assert not requesting.streams
    gc.collect()
    assert gone() is None  # neither the context nor a timer of the event loop knows it


async def test_a_stream_has_one_reader_at_a_time() -> None:
    requesting = Requesting()
    requesting.withdrawn.set()
    async with _stream(requesting) as stream:
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader at a time"):
            await anext(stream)
        requesting.receiver.receive_body(ITEM)
        assert await first == "a"


async def test_a_reader_that_gave_up_may_read_again() -> None:
    requesting = Requesting()
    requesting.withdrawn.set()
    async with _stream(requesting) as stream:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.001)
        requesting.receiver.receive_body(ITEM)
        assert await asyncio.wait_for(anext(stream), 60) == "a"


@pytest.fixture
def no_collector() -> Generator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def _read(requesting: Requesting, fault: Callable[[ResponseReceiver], object]) -> str:
    """Read a stream with a fault; return what its caller was told."""
    try:
        async with _stream(requesting) as stream:
            fault(requesting.receiver)
            async for _ in stream:
                pass
    except DialbackError as error:
        return str(error)
    return "nothing"


FAULTS: list[tuple[Callable[[ResponseReceiver], object], str]] = [
    (lambda it: it.receive_body(b"{"), "Unknown: "),
    (lambda it: it.fail(RequestTimeoutError("late")), "late"),
    (lambda it: it.fail(DeadlineExceededError("late")), "late"),
    (lambda it: it.interrupt("closed"), "stream ended before generation completed, after 0 items"),
]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(("fault", "told"), FAULTS)
async def test_a_stream_that_failed_is_freed_without_the_collector(
    fault: Callable[[ResponseReceiver], object], told: str
) -> None:
    requesting = Requesting()
    requesting.withdrawn.set()
    assert (await _read(requesting, fault)).startswith(told)
    gone = weakref.ref(requesting.receiver)
    del requesting
    await asyncio.sleep(0)
    assert gone() is None


async def test_a_stream_that_failed_says_so_again() -> None:
    requesting = Requesting()
    requesting.withdrawn.set()
    async with _stream(requesting) as stream:
        requesting.receiver.interrupt("closed")
        for _ in range(2):
            with pytest.raises(StreamInterrupted, match="after 0 items: closed") as caught:
                await anext(stream)
            assert caught.value.items == 0
    with pytest.raises(StreamInterrupted):
        await anext(stream)


async def test_an_error_item_is_raised_once_and_read_over() -> None:
    requesting = Requesting()
    requesting.withdrawn.set()
    async with _stream(requesting) as stream:
        requesting.receiver.receive_body(b"{")
        requesting.receiver.receive_body(ITEM)
        with pytest.raises(ResponseError, match="Unknown"):
            await anext(stream)
        assert await anext(stream) == "a"
