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
    waiting = context.async_killed_or_stopped()
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


# --- as Dynamo's binding has it -------------------------------------------------------------


async def test_waiting_is_a_future_of_ones_own() -> None:
    context = Context("req-1")
    mine, another = context.async_killed_or_stopped(), context.async_killed_or_stopped()
    mine.cancel()
    context.stop_generating()
    assert await another is True
    assert await context.async_killed_or_stopped() is True, "a past stop counts"


async def test_waiting_can_race_with_something_else() -> None:
    context = Context("req-1")
    never = asyncio.get_running_loop().create_future()
    context.kill()
    done, _ = await asyncio.wait(
        (context.async_killed_or_stopped(), never), return_when=asyncio.FIRST_COMPLETED
    )
    assert [future.result() for future in done] == [True]


def test_a_context_without_an_id_gets_one_of_its_own() -> None:
    assert len(Context().id()) == 36
    assert Context().id() != Context().id()


def test_metadata_can_be_replaced() -> None:
    context = Context("req-1", {"a": "1"})
    context.metadata = {"b": "2"}
    assert context.metadata == {"b": "2"}


def test_trace_headers_name_this_span_as_the_parent() -> None:
    sent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=b", "other": "x"}
    context = Context("req-1", headers=sent)
    assert context.trace_headers() == {
        "traceparent": f"00-{TRACE}-{context.span_id}-01",
        "tracestate": "a=b",
    }
    assert context.parent_span_id == SPAN != context.span_id
    assert Context("req-2").trace_headers() is None


def test_notify_first_token_is_there_and_does_nothing() -> None:
    context = Context("req-1")
    context.notify_first_token()
    assert not context.is_stopped()


# --- children -------------------------------------------------------------------------------


class Heard:
    """A child that writes down what it hears, and whether its parent had heard it."""

    def __init__(self, parent: Context, log: list[tuple[str, str, bool]], name: str) -> None:
        self._parent, self._log, self._name = parent, log, name

    def stop_generating(self) -> None:
        self._log.append((self._name, "stop", self._parent.is_stopped()))

    def kill(self) -> None:
        self._log.append((self._name, "kill", self._parent.is_killed()))


def test_children_hear_first_and_in_the_order_they_were_linked() -> None:
    parent, log = Context("req-1"), list[tuple[str, str, bool]]()
    children = [Heard(parent, log, name) for name in ("one", "two")]
    for child in (*children, children[0]):
        parent.link_child(child)
    parent.stop_generating()
    parent.stop_generating()
    parent.kill()
    parent.stop_generating()
    assert log == [
        ("one", "stop", False),
        ("two", "stop", False),
        ("one", "kill", False),
        ("two", "kill", False),
    ]


@pytest.mark.parametrize("end", ["stop_generating", "kill"])
def test_a_child_that_is_linked_late_hears_of_the_past(end: str) -> None:
    parent, child = Context("parent"), Context("child")
    getattr(parent, end)()
    parent.link_child(child)
    assert (child.is_stopped(), child.is_killed()) == (True, end == "kill")


def test_an_unlinked_child_hears_no_more_and_a_childs_stop_stays_its_own() -> None:
    parent, child, other = Context("parent"), Context("child"), Context("other")
    parent.link_child(child)
    parent.link_child(other)
    child.stop_generating()
    assert not parent.is_stopped()
    parent.unlink_child(other)
    parent.unlink_child(other)
    parent.kill()
    assert (child.is_killed(), other.is_stopped()) == (True, False)
