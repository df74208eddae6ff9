"""The engine's view of its request (protocol section 11)."""

import asyncio
from datetime import UTC, datetime

import pytest

from dialback.ingress.context import Context

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def test_context_is_live_at_first() -> None:
    context = Context("req-1")
    assert (context.id(), context.is_stopped(), context.is_killed()) == ("req-1", False, False)
    assert (context.delivery, context.lane, context.deadline) == (1, "normal", None)
    assert (context.metadata, dict(context.headers)) == ({}, {})


def test_stop_is_no_kill() -> None:
    context = Context("req-1")
    context.stop_generating()
    assert (context.is_stopped(), context.is_killed()) == (True, False)


def test_kill_is_a_stop_too() -> None:
    context = Context("req-1")
    context.kill()
    assert (context.is_stopped(), context.is_killed()) == (True, True)


def test_stop_does_not_weaken_a_kill() -> None:
    context = Context("req-1")
    context.kill()
    context.stop_generating()
    assert context.is_killed()


@pytest.mark.parametrize("end", [Context.stop_generating, Context.kill])
async def test_waiting_ends_with_stop_and_with_kill(end: "object") -> None:
    context = Context("req-1")
    waiting = asyncio.create_task(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert callable(end)
    end(context)
    assert await waiting is True


def test_detached_context_keeps_what_was_sent_but_not_the_stop() -> None:
    deadline = datetime(2030, 1, 1, tzinfo=UTC)
    context = Context(
        "req-1",
        metadata={"tenant": "a"},
        headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
        deadline=deadline,
        delivery=3,
        lane="high",
    )
    context.kill()
    other = context.detached("req-2")
    assert (other.id(), other.is_stopped()) == ("req-2", False)
    assert (other.metadata, other.deadline) == ({"tenant": "a"}, deadline)
    assert (other.delivery, other.lane, other.trace_id) == (3, "high", TRACE)
    other.stop_generating()
    assert context.is_killed()


def test_metadata_may_be_changed_by_the_engine_without_changing_what_was_sent() -> None:
    sent = {"tenant": "a"}
    context = Context("req-1", metadata=sent)
    context.metadata["tenant"] = "b"
    assert (context.metadata, sent) == ({"tenant": "b"}, {"tenant": "a"})


def test_trace_is_read_from_the_traceparent() -> None:
    context = Context("req-1", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert (context.trace_id, context.parent_span_id) == (TRACE, SPAN)
    assert context.span_id is not None
    assert len(bytes.fromhex(context.span_id)) == 8
    assert context.span_id != SPAN


@pytest.mark.parametrize("header", ["", "00-short-b7ad6b7169203331-01", f"00-{TRACE}-{SPAN}-01\n"])
def test_broken_traceparent_is_no_trace(header: str) -> None:
    context = Context("req-1", headers={"traceparent": header})
    assert (context.trace_id, context.span_id, context.parent_span_id) == (None, None, None)
