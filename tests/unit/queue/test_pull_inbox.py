import pytest
from nats.aio.msg import Msg

from dialback.queue.delivery import DeliveryInfo
from dialback.queue.pull_inbox import PullInbox
from support.fake_jetstream import FakeJetStream


def _message(message: Msg, info: DeliveryInfo, asked: float) -> None:
    raise AssertionError((message, info, asked))


def _status(reply: str, status: str) -> None:
    raise AssertionError((reply, status))


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
