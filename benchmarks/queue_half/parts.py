"""A worker's queue half: everything a worker wires, with the back-channel replaced.

Connection, topology, leases with their thread, consumer, puller, settler, dead letters, notes,
metrics, one log line for each request; and the ingress with an engine of one item, or only the
reading of requests.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any, Final

from prometheus_client import CollectorRegistry
from typing_extensions import override

from benchmarks.queue_half import decoding
from benchmarks.queue_half.ledger import Ledger
from benchmarks.queue_half.requests import ENDPOINT
from benchmarks.queue_half.stand_ins import (
    CountedMetrics,
    NoLeases,
    NoServiceMetrics,
    NoWorkHandlerMetrics,
    SwallowingDialer,
)
from dialback.ingress.engine import Engine
from dialback.metrics.work_handler import WorkHandlerMetrics
from dialback.metrics.worker_metrics import WorkerMetrics
from dialback.outcomes import DeliveryEnd, Outcome
from dialback.queue.cancellation import Cancellations
from dialback.queue.client import QueueClient
from dialback.queue.consumer import Consumer
from dialback.queue.lease import LeaseKeeper
from dialback.queue.topology import Topology
from dialback.settings import Settings
from dialback.tasks import cancel_and_wait
from dialback.transport.dial import Dialer
from dialback.worker_parts import WorkerParts

_NAME: Final = "bench"
_PULSE: Final = 0.5  # seconds, as in a worker


class _Parts(WorkerParts):
    """A worker's parts, but for the dialer."""

    @override
    def dialer(self) -> Dialer:
        return SwallowingDialer()


async def _answer(request: Any) -> AsyncIterator[Any]:
    yield {"text": "Scattering."}


def _working(most: float) -> Callable[[Any], AsyncIterator[Any]]:
    """Return an engine that takes up to so many seconds, another time for each request."""

    async def work(request: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(random.uniform(0.0, most))  # noqa: S311 -- not a secret
        yield {"text": "Scattering."}

    return work


async def queue_half(
    stack: AsyncExitStack,
    settings: Settings,
    ledger: Ledger,
    without: Collection[str],
    work: float,
) -> Consumer:
    """Wire a worker's queue half as a worker does; its consumer is ready to run.

    Args:
        stack: Closes what is opened.
        settings: Server and slots.
        ledger: Told of each request that was settled.
        without: Of ``leases`` and ``metrics``, what is replaced by something that does nothing;
            without ``ingress`` requests are only read.
        work: Seconds that the engine takes at most for a request.

    Raises:
        DialbackError: If the server cannot be reached, or the topology does not fit.
    """
    metrics = _metrics(settings.slots, ledger, metered="metrics" not in without)
    engine = Engine(_working(work) if work else _answer)
    parts = _Parts(settings, ENDPOINT, engine, metrics=metrics, name=_NAME, on_healthy=None)
    client = await QueueClient.open(settings.server_address(), name=_NAME, role="worker")
    stack.push_async_callback(client.close)
    topology = Topology(client.api, ENDPOINT, settings.queue_settings())
    await topology.ensure()
    await engine.startup()
    leases = _leases(parts, settings, kept="leases" not in without)
    await leases.start()
    stack.push_async_callback(leases.stop)
    pulse = asyncio.create_task(_pulse(leases), name="pulse")
    stack.push_async_callback(cancel_and_wait, pulse)
    handle = decoding.handle if "ingress" in without else parts.ingress().handle
    cancellations = Cancellations(handle, worker=_NAME)
    return parts.consumer(client, leases, topology, cancellations.handle)


def _metrics(slots: int, ledger: Ledger, *, metered: bool) -> WorkerMetrics:
    registry = CollectorRegistry()
    work_handler = (WorkHandlerMetrics if metered else NoWorkHandlerMetrics)(
        registry,
        namespace=ENDPOINT.namespace,
        component=ENDPOINT.component,
        endpoint=ENDPOINT.endpoint,
        worker_id=_NAME,
    )
    service = (CountedMetrics if metered else NoServiceMetrics)(
        registry, outcomes=Outcome, delivery_ends=DeliveryEnd, version=_NAME, slots=slots
    )
    service.ledger = ledger
    return WorkerMetrics(registry, work_handler, service)


def _leases(parts: WorkerParts, settings: Settings, *, kept: bool) -> LeaseKeeper:
    if kept:
        return parts.leases(on_closed=lambda: None, report=None)
    return NoLeases(settings.server_address(), name=_NAME, ack_wait=settings.ack_wait)


async def _pulse(leases: LeaseKeeper) -> None:
    while True:
        leases.loop_turned()
        await asyncio.sleep(_PULSE)
