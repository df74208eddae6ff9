import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import pytest
from typing_extensions import override

from dialback.queue.replies import ConnectionLostError, Replies
from support.fake_jetstream import FakeJetStream, message

LONG = 3600.0


@dataclass
class Silent(FakeJetStream):
    """Takes questions, and leaves it to the test to answer them."""

    asked_for: dict[str, str] = field(default_factory=dict[str, str])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @override
    async def asked(self, subject: str, payload: bytes, reply: str, headers: Any) -> None:
        self.asked_for[subject] = reply
        self.changed.set()

    async def until_asked(self, *subjects: str) -> None:
        while not self.asked_for.keys() >= set(subjects):
            self.changed.clear()
            await self.changed.wait()

    def answer(self, subject: str, data: bytes) -> None:
        reply = self.asked_for[subject]
        self.deliver(reply, message(reply, data))


async def test_each_answer_goes_to_who_asked() -> None:
    server = Silent()
    replies = Replies(server.client)
    first = asyncio.create_task(replies.ask("a", b"", timeout=LONG))
    second = asyncio.create_task(replies.ask("b", b"", timeout=LONG))
    await server.until_asked("a", "b")
    server.answer("b", b"2")
    server.answer("a", b"1")
    assert (await first, await second) == (b"1", b"2")


async def test_all_questions_share_one_inbox() -> None:
    server = FakeJetStream(answers=[b"1", b"2", b"3"])
    replies = Replies(server.client)
    inboxes = [await server.subscribe("before", cb=_unused)]
    asked = [replies.ask(subject, b"", timeout=LONG) for subject in "abc"]
    assert await asyncio.gather(*asked) == [b"1", b"2", b"3"]
    inboxes.append(await server.subscribe("after", cb=_unused))
    assert [inbox._id for inbox in inboxes] == [1, 3]  # pyright: ignore[reportPrivateUsage]


async def _unused(_: object) -> None:
    raise AssertionError


async def test_payload_and_headers_are_sent() -> None:
    server = FakeJetStream(answers=[b"", b""])
    replies = Replies(server.client)
    await replies.ask("a", b"x", timeout=LONG, headers={"Name": "value"})
    await replies.ask("a", b"x", timeout=LONG)
    assert server.requests == [("a", b"x", {"Name": "value"}), ("a", b"x", None)]


async def test_no_answer_in_time_is_a_timeout_of_nats() -> None:
    with pytest.raises(nats.errors.TimeoutError):
        await Replies(Silent().client).ask("a", b"", timeout=0.01)


async def test_each_question_has_its_own_time() -> None:
    server = Silent()
    replies = Replies(server.client)
    patient = asyncio.create_task(replies.ask("patient", b"", timeout=LONG))
    medium = asyncio.create_task(replies.ask("medium", b"", timeout=0.05))
    await server.until_asked("patient", "medium")
    with pytest.raises(nats.errors.TimeoutError):
        await replies.ask("short", b"", timeout=0.01)
    with pytest.raises(nats.errors.TimeoutError):
        await medium
    server.answer("patient", b"late")
    assert await patient == b"late"


async def test_an_answer_that_comes_too_late_is_nobody_s() -> None:
    server = Silent()
    replies = Replies(server.client)
    with pytest.raises(nats.errors.TimeoutError):
        await replies.ask("a", b"", timeout=0.01)
    again = asyncio.create_task(replies.ask("b", b"", timeout=LONG))
    await server.until_asked("b")
    server.answer("a", b"late")
    server.answer("b", b"in time")
    assert await again == b"in time"


async def test_a_subject_that_nobody_listens_to() -> None:
    server = FakeJetStream(answers=[nats.errors.NoRespondersError()])
    with pytest.raises(nats.errors.NoRespondersError):
        await Replies(server.client).ask("a", b"", timeout=LONG)


async def test_what_cannot_be_sent_is_raised_at_once() -> None:
    server = FakeJetStream(answers=[nats.errors.ConnectionClosedError(), b"1"])
    replies = Replies(server.client)
    with pytest.raises(nats.errors.ConnectionClosedError):
        await replies.ask("a", b"", timeout=LONG)
    assert await replies.ask("a", b"", timeout=LONG) == b"1"


class _Unheard(FakeJetStream):
    """Cannot be listened to, the first time."""

    refused = False

    @override
    async def subscribe(self, subject: str, *, cb: Callable[..., Any]) -> Any:
        if not self.refused:
            self.refused = True
            raise nats.errors.ConnectionClosedError
        return await super().subscribe(subject, cb=cb)


async def test_an_inbox_that_could_not_be_opened_is_opened_with_the_next_question() -> None:
    replies = Replies(_Unheard(answers=[b"1"]).client)
    with pytest.raises(nats.errors.ConnectionClosedError):
        await replies.ask("a", b"", timeout=LONG)
    assert await replies.ask("a", b"", timeout=LONG) == b"1"


async def test_a_lost_connection_fails_all_that_wait_and_no_later_question() -> None:
    server = Silent()
    replies = Replies(server.client)
    waiting = [asyncio.create_task(replies.ask(subject, b"", timeout=LONG)) for subject in "ab"]
    await server.until_asked("a", "b")
    replies.connection_lost()
    replies.connection_lost()
    for question in waiting:
        with pytest.raises(ConnectionLostError, match="connection lost"):
            await question
    later = asyncio.create_task(replies.ask("c", b"", timeout=LONG))
    await server.until_asked("c")
    server.answer("c", b"1")
    assert await later == b"1"


async def test_a_question_that_is_cancelled_leaves_nothing() -> None:
    server = Silent()
    replies = Replies(server.client)
    asking = asyncio.create_task(replies.ask("a", b"", timeout=LONG))
    await server.until_asked("a")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.answer("a", b"late")
    replies.connection_lost()
    assert not replies._waiting  # pyright: ignore[reportPrivateUsage]


async def test_questions_leave_nothing_to_the_garbage_collector() -> None:
    server = FakeJetStream(answers=[b"1"] * 20)
    replies = Replies(server.client)
    for _ in range(10):
        await replies.ask("a", b"", timeout=LONG)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await replies.ask("a", b"", timeout=LONG)
        assert gc.collect() == 0
    finally:
        gc.enable()
