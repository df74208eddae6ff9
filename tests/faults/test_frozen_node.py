"""The node that carries a worker's renewals freezes; the cluster goes on without it.

The connection to it stays open, and nobody says that it is dead: only pings that stay without an
answer do. It has to be noticed, and replaced, before the leases end.

Source: jetstream sections 1.3 and 2.1.
"""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import pytest

from dialback.outcomes import Delivery, Ending, Finished, Outcome, Revoked, Superseded
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.topology import Endpoint, Lane
from dialback.tasks import cancel_and_wait
from support import figures
from support.cluster import NODES, Cluster, Node
from support.consumer_rig import consuming
from support.eventually import eventually
from support.queue_rig import nothing_left, provision, put

SLOTS = 4
ACK_WAIT = 30.0  # seconds, the default, which has to be enough


class Renewals:
    """Tells when leases were confirmed."""

    def __init__(self) -> None:
        self._confirmed: dict[str, float] = {}

    def held(self, reply: str, confirmed: float) -> None:
        self._confirmed[reply] = confirmed

    def released(self, reply: str) -> None:
        self._confirmed.pop(reply, None)

    async def after(self, moment: float) -> list[float]:
        """Wait until each lease was confirmed later than this; stop when one was lost."""

        async def seen() -> list[float]:
            return list(self._confirmed.values())

        def over(confirmed: list[float]) -> bool:
            return len(confirmed) < SLOTS or min(confirmed) > moment

        return await eventually(seen, over, within=2 * ACK_WAIT)


@asynccontextmanager
async def opened(node: Node) -> AsyncGenerator[QueueClient]:
    """Connect to one node of a cluster."""
    client = await QueueClient.open(ServerAddress(url=node.url), name="main", role="worker")
    try:
        yield client
    finally:
        await client.close()


@contextmanager
def frozen(node: Node) -> Generator[None]:
    """Freeze a node for as long as this lasts."""
    node.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.signal(signal.SIGCONT)


class Engine:
    """Works until it is released, or its lease is lost."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> Ending:
        waits = (self.released.wait(), delivery.revocation.wait())
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await cancel_and_wait(*tasks)
        if delivery.revocation.reason is Revoked.LEASE_LOST:
            return Superseded(request_id="", reason="lease lost")
        return Finished(outcome=Outcome.COMPLETED, request_id="")


async def follower(cluster: Cluster, endpoint: Endpoint) -> Node:
    """Return a node without which the queue is served: it leads neither stream nor lane."""
    leaders = {
        (await cluster.stream_leader(endpoint.stream)).name,
        (await cluster.consumer_leader(endpoint.stream, Lane.NORMAL)).name,
    }
    return next(node for node in cluster.nodes if node.name not in leaders)


@pytest.mark.ci
async def test_leases_outlive_the_node_that_their_renewals_go_to(endpoint: Endpoint) -> None:
    engine, renewals = Engine(), Renewals()
    async with Cluster() as cluster:
        await provision(cluster.client, endpoint, replicas=NODES, ack_wait=ACK_WAIT)
        node = await follower(cluster, endpoint)
        leader = await cluster.stream_leader(endpoint.stream)
        async with (
            opened(leader) as worker,
            consuming(
                node.url, worker, endpoint, slots=SLOTS, ack_wait=ACK_WAIT, report=renewals
            ) as rig,
        ):
            rig.handle = engine
            for number in range(SLOTS):
                await put(worker, endpoint, f"r-{number}")
            await rig.until_busy(SLOTS)
            with frozen(node):
                begun = time.monotonic()
                confirmed = await renewals.after(begun)
                engine.released.set()
                await nothing_left(worker, endpoint)
            redelivered = sum(delivery.number > 1 for delivery in rig.deliveries)
            completed = rig.counts().get(Outcome.COMPLETED, 0)
    figures.record(
        fault=f"the node of a worker's renewals is frozen, {SLOTS} leases of {ACK_WAIT:g} s",
        submitted=SLOTS,
        completed=int(completed),
        redelivered=redelivered,
        renewed_after=max(confirmed, default=begun) - begun,
    )
    assert len(confirmed) == SLOTS
    assert completed == len(rig.deliveries) == SLOTS
    assert redelivered == 0
