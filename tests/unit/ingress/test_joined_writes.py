"""What leaves together: each write is a system call here and a read at the requester's."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from dialback.ingress.context import Context
from dialback.ingress.engine import Engine
from dialback.ingress.response import ResponseHooks, ResponseRun, StreamEnd, run_response
from dialback.metrics.registration import Count
from dialback.outcomes import Revocation, Revoked
from dialback.transport.messages import PayloadCodec, ResumeOffer
from dialback.transport.response_stream import SENTINEL_FRAME, STOP_FRAME
from dialback.transport.sender import ResponseSender
from support.fake_transport import FakeTransport
from support.frames import decode_all
from support.ingress_rig import ACCEPTED, FINAL, FINAL_BYTES, item, item_bytes

FRESH = ResumeOffer(delivery=1, epoch=5, fresh=True)
ASKS = ResumeOffer(delivery=2, epoch=5)


class Stream:
    """A stream that was dialled just now."""

    def __init__(self, offer: ResumeOffer | None) -> None:
        self.transport = FakeTransport()
        self.sender = ResponseSender()
        self.transport.join(self.sender.connection)
        self.sender.send_handshake("s", offer)
        self.revocation = Revocation()
        self.bytes = Count()

    async def run(
        self, generate: Callable[[Any], AsyncIterator[Any]], engine: Engine | None = None
    ) -> ResponseRun:
        if engine is None:
            engine = Engine(generate, name="mine")
            engine.quick = True
        return await run_response(
            engine,
            None,
            Context("r1"),
            self.sender,
            codec=PayloadCodec.JSON,
            revocation=self.revocation,
            stop_grace=10,
            hooks=ResponseHooks(response_bytes=self.bytes),
        )


async def two(_: object) -> AsyncIterator[int]:
    for number in range(2):
        yield number


async def test_a_first_delivery_with_a_quick_engine_is_one_write() -> None:
    stream = Stream(FRESH)
    assert stream.transport.calls == []
    run = await stream.run(two)
    (written,) = stream.transport.calls
    assert written.endswith(ACCEPTED + item(0) + item(1) + FINAL + SENTINEL_FRAME)
    assert len(decode_all(written)) == 6
    assert (run.end, run.items, run.complete) == (StreamEnd.DONE, 2, True)
    assert stream.bytes.value == run.response_bytes == item_bytes(0, 1) + FINAL_BYTES


@pytest.mark.parametrize("offer", [None, ASKS], ids=["plain", "asks"])
async def test_a_handshake_that_somebody_waits_for_leaves_at_once(
    offer: ResumeOffer | None,
) -> None:
    assert len(Stream(offer).transport.calls) == 1


async def test_a_handshake_waits_for_the_first_step_only_of_an_engine_that_is_known_to_be_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that computes for ten seconds would have its connection reset meanwhile."""
    left_before: list[int] = []

    async def generate(_: object) -> AsyncIterator[int]:
        left_before.append(len(stream.transport.calls))
        yield 0

    engine = Engine(generate, name="mine")
    for quick in (-1.0, 3600.0, -1.0):  # what a step may take: this one was slow, quick, slow
        monkeypatch.setattr("dialback.ingress.response._QUICK", quick)
        stream = Stream(FRESH)
        await stream.run(generate, engine)
    # Nothing is known before the first call; then the last one tells.
    assert left_before == [1, 1, 0]
    assert not engine.quick


async def test_a_fresh_handshake_does_not_wait_for_an_engine_that_takes_its_time() -> None:
    stream, called, gate = Stream(FRESH), asyncio.Event(), asyncio.Event()

    async def slow(_: object) -> AsyncIterator[int]:
        called.set()
        await gate.wait()
        return two(None)

    running = asyncio.create_task(stream.run(cast("Callable[[Any], AsyncIterator[Any]]", slow)))
    await called.wait()
    await asyncio.sleep(0)  # the turn is over
    assert [len(decode_all(written)) for written in stream.transport.calls] == [1]
    gate.set()
    await running


async def test_a_stream_that_was_asked_to_stop_is_not_ended_by_the_engines_task() -> None:
    stream = Stream(FRESH)

    async def stopped(_: object) -> AsyncIterator[int]:
        yield 0
        stream.sender.connection.data_received(STOP_FRAME)

    run = await stream.run(stopped)
    assert (run.end, run.exhausted, run.complete) == (StreamEnd.STOPPED, True, False)
    assert stream.bytes.value == item_bytes(0)


async def test_what_happens_after_the_final_does_not_change_how_it_ended() -> None:
    stream = Stream(FRESH)

    async def shut_down(_: object) -> AsyncIterator[int]:
        yield 0
        # Runs when the engine has ended, and before anybody has noticed.
        asyncio.get_running_loop().call_soon(stream.revocation.set, Revoked.SHUTDOWN)

    run = await stream.run(shut_down)
    assert stream.revocation.reason is Revoked.SHUTDOWN
    assert (run.end, run.complete) == (StreamEnd.DONE, True)


async def test_an_engine_that_fails_after_its_items_has_no_end_written() -> None:
    stream = Stream(FRESH)

    async def fails(_: object) -> AsyncIterator[int]:
        yield 0
        raise ValueError

    run = await stream.run(fails)
    assert (run.end, run.complete) == (StreamEnd.FAILED, False)
    assert stream.bytes.value == run.response_bytes == item_bytes(0)


async def test_an_engine_that_fails_as_its_delivery_is_cancelled_leaves_no_error_unread() -> None:
    unread: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unread.append(context))

    async def fail(_: object) -> AsyncIterator[int]:
        loop.call_soon(running.pop().cancel)
        raise ValueError
        yield 0

    running = [asyncio.create_task(Stream(FRESH).run(fail))]
    await asyncio.wait(running)
    gc.collect()
    assert unread == []
