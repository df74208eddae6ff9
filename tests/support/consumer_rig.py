"""A consumer on a real queue, with a scripted ingress."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import (
    Delivery,
    DeliveryEnd,
    Ending,
    Finished,
    Outcome,
    Revoked,
    Superseded,
)
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.consumer import Consumer
from dialback.queue.dead_letter import DeadLetters
from dialback.queue.epochs import Epochs
from dialback.queue.lease import LeaseKeeper
from dialback.queue.notes import Notes
from dialback.queue.policy import RetryPolicy
from dialback.queue.topology import Endpoint, Lane, QueueSettings, Topology
from support.eventually import eventually
from support.queue_rig import LANES, LIMIT, lane_state


class ConsumerRig:
    """One consumer, its endings and what it counts."""

    def __init__(
        self,
        client: QueueClient,
        endpoint: Endpoint,
        leases: LeaseKeeper,
        slots: int,
        ack_wait: float,
    ) -> None:
        self.client = client
        self.endpoint = endpoint
        self.registry = CollectorRegistry()
        self.deliveries: list[Delivery] = []
        self.handle: Callable[[Delivery], Awaitable[Ending]] = until_revoked
        self.topology = Topology(client.api, endpoint, QueueSettings(ack_wait=ack_wait))
        self.consumer = Consumer(
            client.connection,
            stream=endpoint.stream,
            lanes=LANES,
            slots=slots,
            handle=self._handle,
            leases=leases,
            settler=client.settler,
            dead_letters=DeadLetters(client.api, client.publisher, endpoint),
            notes=Notes(client.connection, client.publisher),
            epochs=Epochs(self.topology.created, self.topology.ensure),
            metrics=ServiceMetrics(
                self.registry,
                outcomes=Outcome,
                delivery_ends=DeliveryEnd,
                version="1",
                slots=slots,
            ),
            worker="pod-1",
            policy=RetryPolicy(max_attempts=3, retry_delay=0.02),
        )

    async def _handle(self, delivery: Delivery) -> Ending:
        self.deliveries.append(delivery)
        return await self.handle(delivery)

    async def until_busy(self, count: int) -> None:
        async def busy() -> int:
            return self.consumer.in_flight

        await eventually(busy, lambda found: found == count)

    async def until_waiting(self) -> None:
        """Wait until every lane has a lingering pull."""

        async def pulls() -> list[int]:
            lanes = [await lane_state(self.client, self.endpoint, lane) for lane in Lane]
            return [state["num_waiting"] for state in lanes]

        await eventually(pulls, lambda found: found == [1] * 3)

    def counts(self) -> dict[str, float]:
        """Every way a request or a delivery ended, with its number."""
        found: dict[str, float] = {}
        for outcome in Outcome:
            found[outcome] = self.sample("dialback_outcomes_total", outcome=outcome.value)
        for end in DeliveryEnd:
            found[end] = self.sample("dialback_deliveries_total", end=end.value)
        return {name: value for name, value in found.items() if value}

    async def until_counted(self, **expected: float) -> None:
        """Wait for exactly these; messages of several lanes may race for a slot, so
        ``handed_back`` is compared only if it is expected.
        """

        async def counts() -> dict[str, float]:
            found = self.counts()
            return {n: v for n, v in found.items() if n in expected or n != "handed_back"}

        await eventually(counts, lambda found: found == expected)

    def sample(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        assert value is not None
        return value


async def until_revoked(delivery: Delivery) -> Ending:
    if await delivery.revocation.wait() is Revoked.LEASE_LOST:
        return Superseded(request_id="r", reason="lease lost")
    return Finished(outcome=Outcome.INTERRUPTED, request_id="r", reason="shutdown")


def always(outcome: Outcome) -> Callable[[Delivery], Awaitable[Ending]]:
    async def handle(delivery: Delivery) -> Ending:
        request_id = delivery.subject.rpartition(".")[2]
        return Finished(outcome=outcome, request_id=request_id, reason="why")

    return handle


@asynccontextmanager
async def consuming(
    url: str,
    client: QueueClient,
    endpoint: Endpoint,
    *,
    slots: int = 2,
    ack_wait: float = 1.0,
    pulse: float = 0.1,
    **lease: Any,
) -> AsyncGenerator[ConsumerRig]:
    leases = LeaseKeeper(ServerAddress(url=url), name="t", ack_wait=ack_wait, **lease)
    rig = ConsumerRig(client, endpoint, leases, slots, ack_wait)
    await rig.topology.ensure()
    await leases.start()
    running = asyncio.create_task(rig.consumer.run())
    beating = asyncio.create_task(beat(leases, pulse))
    try:
        yield rig
    finally:
        rig.consumer.puller.stop()
        async with asyncio.timeout(LIMIT):
            await running
            await rig.consumer.drain(1.0, reserve=1.0, hurry=asyncio.Event())
        beating.cancel()
        await leases.stop()


async def beat(leases: LeaseKeeper, pulse: float) -> None:
    """Say that the event loop turns, as a worker does."""
    while True:
        leases.loop_turned()
        await asyncio.sleep(pulse)
