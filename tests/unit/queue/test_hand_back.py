import asyncio

import pytest
from nats.aio.msg import Msg

from dialback.queue.delivery import DeliveryInfo, parse_ack_subject
from dialback.queue.hand_back import HandBacks
from support.fake_jetstream import ack_subject, message

MESSAGE = message(reply=ack_subject("low", 7))


def info() -> DeliveryInfo:
    found = parse_ack_subject(MESSAGE.reply)
    assert found is not None
    return found


async def test_the_end_waits_for_hand_backs_under_way() -> None:
    go, done, seen = asyncio.Event(), [0], list[tuple[Msg, int]]()

    async def hand_back(given: Msg, about: DeliveryInfo) -> None:
        await go.wait()
        seen.append((given, about.sequence))

    def count() -> None:
        done[0] += 1

    hand_backs = HandBacks(hand_back, count)
    hand_backs.start(MESSAGE, info())
    closing = asyncio.create_task(hand_backs.close())
    await asyncio.sleep(0)
    assert not closing.done()
    go.set()
    await closing
    assert (seen, done) == ([(MESSAGE, 7)], [1])


async def test_the_end_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dialback.queue.hand_back._WAIT_AT_END", 0.01)
    cancelled = asyncio.Event()

    async def hand_back(_: Msg, __: DeliveryInfo) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    hand_backs = HandBacks(hand_back, lambda: None)
    hand_backs.start(MESSAGE, info())
    await hand_backs.close()
    assert cancelled.is_set()
    assert "could not be handed back" in caplog.text


async def test_a_hand_back_that_fails_is_logged_and_not_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted: list[None] = []

    async def hand_back(_: Msg, __: DeliveryInfo) -> None:
        raise OSError("the wire is cut")

    hand_backs = HandBacks(hand_back, lambda: counted.append(None))
    hand_backs.start(MESSAGE, info())
    await hand_backs.close()
    assert counted == []
    assert "the wire is cut" in caplog.text
