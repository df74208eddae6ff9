import asyncio

import pytest
from nats.aio.msg import Msg

from dialback.queue.delivery import DeliveryInfo
from dialback.queue.pull_inbox import PullInbox
from support.fake_jetstream import FakeJetStream, message


def _message(delivered: Msg, info: DeliveryInfo, asked: float) -> None:
    raise AssertionError((delivered, info, asked))


def _status(reply: str, status: str, left: int | None) -> None:
    raise AssertionError((reply, status, left))


async def dropped(server: FakeJetStream, count: int) -> PullInbox:
    """Open and drop an inbox so many times."""
    inbox = PullInbox(server.client, "JOBS", on_message=_message, on_status=_status)
    for _ in range(count):
        await inbox.open()
        await inbox.drop()
    return inbox


async def test_dropped_inboxes_still_listen_until_the_end() -> None:
    server = FakeJetStream()
    inbox = await dropped(server, 3)
    assert server.listening == [1, 2, 3]
    await inbox.close()
    assert server.listening == []


async def test_only_the_last_dropped_inboxes_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialback.queue.pull_inbox._MOST_DROPPED", 2)
    server = FakeJetStream()
    await dropped(server, 5)
    assert server.listening == [4, 5]


async def test_a_dropped_inbox_listens_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialback.queue.pull_inbox._LATE_GRACE", 0.0)
    server = FakeJetStream()
    await dropped(server, 2)
    assert server.listening == []


async def test_dropping_what_is_not_open_does_nothing() -> None:
    server = FakeJetStream()
    inbox = await dropped(server, 0)
    await inbox.drop()
    await inbox.close()
    assert server.listening == []


@pytest.mark.parametrize("clustered", [False, True])
async def test_dropping_cancels_for_certain_on_a_server_of_no_cluster_only(clustered: bool) -> None:
    inbox = await dropped(FakeJetStream(clustered=clustered), 0)
    assert inbox.cancels is not clustered


@pytest.mark.parametrize(("header", "left"), [("3", 3), ("", None), ("some", None)])
async def test_a_status_says_what_its_pull_had_left(header: str, left: int | None) -> None:
    server = FakeJetStream()
    seen: asyncio.Future[tuple[str, str, int | None]] = asyncio.Future()

    def note(reply: str, status: str, left: int | None) -> None:
        seen.set_result((reply, status, left))

    inbox = PullInbox(server.client, "JOBS", on_message=_message, on_status=note)
    await inbox.open()
    reply = inbox.new_reply()
    headers = {"Status": "408", "Nats-Pending-Messages": header}
    server.deliver(reply, message(reply, headers=headers))
    assert await seen == (reply, "408", left)
    await inbox.close()
