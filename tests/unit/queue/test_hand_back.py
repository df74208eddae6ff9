import asyncio
from contextlib import suppress

import pytest
from nats.aio.msg import Msg

from dialback.errors import QueueError, ServerUnavailableError
from dialback.queue.delivery import DeliveryInfo, LeaseExpiredError, parse_ack_subject
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


@pytest.mark.parametrize(
    "error",
    [ServerUnavailableError("-NAK not confirmed"), LeaseExpiredError("-NAK came too late")],
)
async def test_a_hand_back_that_is_not_confirmed_is_one_warning_without_a_traceback(
    error: QueueError, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[None] = []

    async def hand_back(_: Msg, __: DeliveryInfo) -> None:
        raise error

    hand_backs = HandBacks(hand_back, lambda: counted.append(None))
    hand_backs.start(MESSAGE, info())
    await hand_backs.close()
    assert counted == []
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert record.message == "a message was not handed back; it comes again when its lease ends"
    assert record.__dict__["reason"] == str(error)


async def test_a_late_hand_back_that_loses_its_cancellation_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialback.queue.hand_back._WAIT_AT_END", 0.01)
    monkeypatch.setattr("dialback.tasks._AGAIN", 0.01)

    async def hand_back(_: Msg, __: DeliveryInfo) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()  # the note, answered in the turn of the cancellation
        await asyncio.Event().wait()  # the NAK, which is not answered

    hand_backs = HandBacks(hand_back, lambda: None)
    hand_backs.start(MESSAGE, info())
    await hand_backs.close()
