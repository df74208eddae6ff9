"""Idle slots while work is queued: heavy-tailed requests, several workers, one queue.

A slot that is free although a request lies in the queue is waste. Pulling for free slots only,
it is free for as long as a pull takes; with prefetching, requests lie behind long ones of a
worker that has no slot for them, while another's slots are free.

Source: jetstream section 1.5 and its fault test F16.
"""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import Final

from prometheus_client import CollectorRegistry
from typing_extensions import override

from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import Delivery, DeliveryEnd, Ending, Finished, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.consumer import Consumer
from dialback.queue.dead_letter import DeadLetters
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.epochs import Epochs
from dialback.queue.lease import LeaseKeeper
from dialback.queue.notes import Notes
from dialback.queue.topology import Endpoint, Lane, QueueSettings, Topology

WORKERS: Final = 4
SLOTS: Final = 2
REQUESTS: Final = 160
ROUNDS: Final = 3
_SEED: Final = 20_261_125
_SHORTEST, _LONGEST = 0.02, 0.8  # seconds


def durations() -> list[float]:
    """Return heavy-tailed durations in seconds, the same ones in every run."""
    tail = random.Random(_SEED)  # noqa: S311 -- not a secret
    return [min(_LONGEST, _SHORTEST * tail.paretovariate(0.9)) for _ in range(REQUESTS)]


class Ledger:
    """Adds up slot-seconds from the first request that is taken to the last one."""

    def __init__(self) -> None:
        """Nothing was taken yet."""
        self.busy: dict[int, int] = {}
        self.done = asyncio.Event()
        self._taken = 0
        self._since = 0.0
        self._idle = 0.0
        self._total = 0.0

    def changed(self, worker: int, busy: int) -> None:
        """A worker has so many busy slots now."""
        now = time.perf_counter()
        before = self.busy.get(worker, 0)
        if 0 < self._taken < REQUESTS:
            passed, slots = now - self._since, WORKERS * SLOTS
            self._idle += passed * (slots - sum(self.busy.values()))
            self._total += passed * slots
        self._since = now
        self.busy[worker] = busy
        self._taken += max(0, busy - before)
        if self._taken == REQUESTS and not any(self.busy.values()):
            self.done.set()

    @property
    def idle_share(self) -> float:
        """Idle slot-seconds, as a share of all."""
        return self._idle / self._total


class _Slots(ServiceMetrics):
    """Metrics that tell the ledger about the slots."""

    def __init__(self, ledger: Ledger, worker: int) -> None:
        self._ledger = ledger
        self._worker = worker
        super().__init__(
            CollectorRegistry(),
            outcomes=Outcome,
            delivery_ends=DeliveryEnd,
            version="bench",
            slots=SLOTS,
        )

    @override
    def set_slots_busy(self, n: int) -> None:
        super().set_slots_busy(n)
        self._ledger.changed(self._worker, n)


async def _handle(delivery: Delivery) -> Ending:
    await asyncio.sleep(float(delivery.payload))
    return Finished(outcome=Outcome.COMPLETED, request_id=str(delivery.sequence))


async def _connected(
    stack: AsyncExitStack, server: ServerAddress, endpoint: Endpoint, metrics: ServiceMetrics
) -> Consumer:
    """Return one worker's consumer, ready to run; the stack closes what it needs."""
    client = await QueueClient.open(server, name="bench", role="bench")
    stack.push_async_callback(client.close)
    leases = LeaseKeeper(server, name="bench-leases", ack_wait=30)
    await leases.start()
    stack.push_async_callback(leases.stop)
    topology = Topology(client.api, endpoint, QueueSettings())
    await topology.ensure()
    return Consumer(
        client.connection,
        stream=endpoint.stream,
        lanes=[lane.value for lane in Lane],
        slots=SLOTS,
        handle=_handle,
        leases=leases,
        settler=client.settler,
        dead_letters=DeadLetters(client.api, client.publisher, endpoint),
        notes=Notes(client.connection, client.publisher),
        epochs=Epochs(topology.created, topology.ensure),
        metrics=metrics,
        worker="bench",
    )


async def _round(server: ServerAddress, endpoint: Endpoint) -> float:
    """Return the idle share of one run."""
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        client = await QueueClient.open(server, name="bench", role="bench")
        stack.push_async_callback(client.close)
        await Topology(client.api, endpoint, QueueSettings()).ensure()
        for number, seconds in enumerate(durations()):
            subject = endpoint.request_subject(Lane.NORMAL, f"r{number}")
            await client.publisher.publish(subject, str(seconds).encode(), {})
        consumers = [
            await _connected(stack, server, endpoint, _Slots(ledger, worker))
            for worker in range(WORKERS)
        ]
        running = [asyncio.create_task(consumer.run()) for consumer in consumers]
        await ledger.done.wait()
        for consumer in consumers:
            consumer.puller.stop()
        await asyncio.gather(*running)
    return ledger.idle_share


async def main() -> None:
    """Measure, and print."""
    async with EmbeddedServer() as server:
        address = ServerAddress(url=server.url)
        shares = [
            await _round(address, Endpoint("bench", "tail", f"e{number}"))
            for number in range(ROUNDS)
        ]
    print(f"idle slot-seconds while work is queued, {WORKERS} workers of {SLOTS} slots")
    print(f"  {REQUESTS} requests of {_SHORTEST:g} to {_LONGEST:g} s, heavy-tailed")
    print(f"  share   {' '.join(f'{share:8.2%}' for share in shares)}   (wanted: below 1 %)")


if __name__ == "__main__":
    asyncio.run(main())
