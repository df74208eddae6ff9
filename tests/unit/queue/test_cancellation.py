import asyncio

from dialback.outcomes import Delivery, Ending, Finished, HandedBack, Outcome, Revoked
from dialback.queue.cancellation import (
    MAX_REMEMBERED,
    REMEMBERED_FOR,
    Cancellations,
    CancelOrder,
    Running,
)
from support.letters import request_of

NS = 1_000_000_000


class Handler:
    """Runs each delivery until it is revoked or released."""

    def __init__(self) -> None:
        self.began: asyncio.Queue[Delivery] = asyncio.Queue()
        self.release = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> Ending:
        self.began.put_nowait(delivery)
        if delivery.revocation.reason is None:
            waits = (delivery.revocation.wait(), self.release.wait())
            tasks = [asyncio.ensure_future(wait) for wait in waits]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        if delivery.revocation.reason is Revoked.CANCELLED:
            return Finished(outcome=Outcome.CANCELLED, request_id=delivery.revocation.detail)
        return HandedBack(request_id="", reason="released")


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def now_ns(self) -> int:
        return round(self.seconds * NS)


def delivery_of(request_id: str, *, sequence: int = 7, published: float = 900.0) -> Delivery:
    return Delivery(
        payload=request_of(request_id), sequence=sequence, published_ns=round(published * NS)
    )


def rig() -> tuple[Cancellations, Handler, Clock]:
    handler, clock = Handler(), Clock()
    cancellations = Cancellations(handler, worker="w-1", now=clock.now, now_ns=clock.now_ns)
    return cancellations, handler, clock


async def test_a_running_request_is_revoked_with_the_operators_reason() -> None:
    cancellations, handler, _ = rig()
    serving = asyncio.ensure_future(cancellations.handle(delivery_of("r1")))
    await handler.began.get()
    answer = cancellations.order(CancelOrder("r1", "too long"))
    assert answer == [Running("w-1", 7, "normal", 1, cancelled=True)]
    assert await serving == Finished(outcome=Outcome.CANCELLED, request_id="too long")
    assert cancellations.order(CancelOrder("r1", dry_run=True)) == []


async def test_another_request_goes_on() -> None:
    cancellations, handler, _ = rig()
    serving = asyncio.ensure_future(cancellations.handle(delivery_of("r1")))
    delivery = await handler.began.get()
    assert cancellations.order(CancelOrder("r2")) == []
    assert delivery.revocation.reason is None
    handler.release.set()
    assert isinstance(await serving, HandedBack)


async def test_a_dry_run_only_says_who_runs_it() -> None:
    cancellations, handler, _ = rig()
    serving = asyncio.ensure_future(cancellations.handle(delivery_of("r1")))
    delivery = await handler.began.get()
    answer = cancellations.order(CancelOrder("r1", dry_run=True))
    assert answer == [Running("w-1", 7, "normal", 1, cancelled=False)]
    assert delivery.revocation.reason is None
    handler.release.set()
    await serving
    later = await cancellations.handle(delivery_of("r1"))
    assert isinstance(later, HandedBack)


async def test_a_request_that_is_ending_already_is_not_said_to_be_cancelled() -> None:
    cancellations, handler, _ = rig()
    serving = asyncio.ensure_future(cancellations.handle(delivery_of("r1")))
    delivery = await handler.began.get()
    delivery.revocation.set(Revoked.SHUTDOWN)
    (running,) = cancellations.order(CancelOrder("r1"))
    assert not running.cancelled
    await serving


async def test_a_delivery_that_comes_after_the_cancel_is_not_run() -> None:
    cancellations, _, clock = rig()
    assert cancellations.order(CancelOrder("r1", "no")) == []
    clock.seconds += REMEMBERED_FOR
    ending = await cancellations.handle(delivery_of("r1"))
    assert ending == Finished(outcome=Outcome.CANCELLED, request_id="no")


async def test_a_cancel_is_forgotten_after_a_while() -> None:
    cancellations, handler, clock = rig()
    cancellations.order(CancelOrder("r1"))
    clock.seconds += REMEMBERED_FOR + 1
    handler.release.set()
    assert isinstance(await cancellations.handle(delivery_of("r1")), HandedBack)


async def test_a_request_published_after_the_cancel_is_another_one() -> None:
    cancellations, handler, clock = rig()
    cancellations.order(CancelOrder("r1"))
    clock.seconds += 60
    handler.release.set()
    again = delivery_of("r1", published=clock.seconds)
    assert isinstance(await cancellations.handle(again), HandedBack)


async def test_the_oldest_cancels_are_forgotten_first() -> None:
    cancellations, handler, _ = rig()
    for number in range(MAX_REMEMBERED + 1):
        cancellations.order(CancelOrder(f"r{number}"))
    handler.release.set()
    assert isinstance(await cancellations.handle(delivery_of("r0")), HandedBack)
    last = await cancellations.handle(delivery_of(f"r{MAX_REMEMBERED}"))
    assert isinstance(last, Finished)
