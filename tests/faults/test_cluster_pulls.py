"""Pulls over a cluster's routes: every delivery arrives, also when the last slot is taken.

The worker's node is not the consumers' leader, so a message crosses a route to it. It vanishes if
the worker's node has forgotten its inbox by then, and nobody is told: the consumer waits for it as
long as a lease lasts. Here that is longer than the test, so what vanished does not come again.

Source: jetstream sections 1.4 and 5.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dialback.errors import ServerUnavailableError
from dialback.outcomes import Delivery, Ending, Finished, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.topology import Endpoint, Lane
from support import figures
from support.cluster import LIMIT, Cluster, Node
from support.consumer_rig import ConsumerRig, consuming
from support.eventually import eventually
from support.queue_rig import lane_state, provision, put

SLOTS = 4
ROUNDS = 100
SUBMITTED = ROUNDS * (SLOTS + len(Lane))
ACK_WAIT = 600.0  # seconds
SETTLED = 30.0  # seconds for one round's requests; they take a few hundredths of one
SEED = 20


class Rounds:
    """Callers and the engine: requests that come when a worker's last slot is taken.

    Each round finds the worker with nothing to do and a pull on every lane. One request after
    the other takes a slot, in lanes at random. With the last one the worker's node halts until a
    request more on every lane is stored. Those are on the route, and what the worker says about
    its pulls is on its way, too, when the node goes on.

    Attributes:
        runs: How often each request was worked on, by its token.
        tokens: Of all that were submitted.
    """

    def __init__(
        self, client: QueueClient, endpoint: Endpoint, rig: ConsumerRig, node: Node
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._rig = rig
        self._node = node
        self._dice = random.Random(SEED)  # noqa: S311 -- repeatable
        self._started = 0  # in this round
        self._all_stored = asyncio.Event()
        self.runs = Counter[str]()
        self.tokens: list[str] = []

    async def run(self) -> None:
        """Go through all rounds; each ends when all that was submitted is settled."""
        self._rig.handle = self._handle
        await self._until_at_rest()
        for _ in range(ROUNDS):
            self._started = 0
            self._all_stored.clear()
            await self._submit(self._any_lane())
            await self._until_at_rest()

    def _any_lane(self) -> Lane:
        return self._dice.choice(list(Lane))

    async def _submit(self, lane: Lane) -> None:
        token = f"r-{len(self.tokens)}"
        self.tokens.append(token)
        await put(self._client, self._endpoint, token, lane=lane)

    async def _handle(self, delivery: Delivery) -> Ending:
        token = delivery.subject.rpartition(".")[2]
        self.runs[token] += 1
        self._started += 1
        if self._started < SLOTS:
            await self._submit(self._any_lane())
        elif self._started == SLOTS:
            await self._submit_while_the_node_halts()
        await self._all_stored.wait()
        return Finished(outcome=Outcome.COMPLETED, request_id=token)

    async def _submit_while_the_node_halts(self) -> None:
        self._node.signal(signal.SIGSTOP)
        try:
            await asyncio.gather(*map(self._submit, Lane))
        finally:
            self._node.signal(signal.SIGCONT)
        self._all_stored.set()

    async def _until_at_rest(self) -> None:
        """Wait until all is settled, no lane holds anything, and a pull stands on each."""

        async def seen() -> tuple[float, dict[str, tuple[int, int, bool]]]:
            states = await lane_states(self._client, self._endpoint)
            missing = len(self.tokens) - self._rig.counts().get(Outcome.COMPLETED, 0)
            return missing, {lane: _load_of(state) for lane, state in states.items()}

        rest = 0, {lane.value: (0, 0, True) for lane in Lane}
        await eventually(seen, lambda found: found == rest, within=SETTLED, every=0.01)


def _load_of(state: dict[str, Any]) -> tuple[int, int, bool]:
    """Messages that wait, deliveries that were not answered, and whether a pull stands."""
    return state["num_pending"], state["num_ack_pending"], state["num_waiting"] > 0


async def lane_states(client: QueueClient, endpoint: Endpoint) -> dict[str, dict[str, Any]]:
    """Return the server's view of every lane."""
    return {lane.value: await lane_state(client, endpoint, lane) for lane in Lane}


@asynccontextmanager
async def opened(node: Node) -> AsyncGenerator[QueueClient]:
    """Connect to one node of a cluster, and not to another."""
    client = await QueueClient.open(ServerAddress(url=node.url), name="pulls", role="worker")
    try:
        yield client
        assert client.server_host[1] == node.client
    finally:
        await client.close()


async def provisioned(cluster: Cluster, endpoint: Endpoint) -> Node:
    """Create the endpoint's streams on one node each; return the node with the requests.

    A cluster that has just begun may leave a request unanswered.
    """

    async def created() -> bool:
        try:
            await provision(cluster.client, endpoint, replicas=1, ack_wait=ACK_WAIT)
        except ServerUnavailableError:
            return False
        return True

    await eventually(created, within=LIMIT)
    node = await cluster.stream_leader(endpoint.stream)
    for lane in Lane:
        assert await cluster.consumer_leader(endpoint.stream, lane) is node
    return node


@pytest.mark.ci
async def test_no_delivery_vanishes_on_its_way_over_a_route(endpoint: Endpoint) -> None:
    async with Cluster(sync_interval="2m") as cluster:
        leader = await provisioned(cluster, endpoint)
        other = next(node for node in cluster.nodes if node is not leader)
        async with (
            opened(leader) as requester,
            opened(other) as worker,
            consuming(other.url, worker, endpoint, slots=SLOTS, ack_wait=ACK_WAIT) as rig,
        ):
            rounds = Rounds(requester, endpoint, rig, other)
            await rounds.run()
            states = await lane_states(requester, endpoint)
            counts = rig.counts()
    deliveries = sum(state["delivered"]["consumer_seq"] for state in states.values())
    handed_back = int(counts.pop("handed_back", 0))
    figures.record(
        fault=f"the last of {SLOTS} slots is taken, over a cluster's route, {ROUNDS} times",
        submitted=len(rounds.tokens),
        completed=len(rounds.runs),
        run_twice=rounds.runs.total() - len(rounds.runs),
        handed_back=handed_back,
    )
    assert len(rounds.tokens) == SUBMITTED
    assert counts == {"completed": SUBMITTED, "settled": SUBMITTED}
    assert rounds.runs == dict.fromkeys(rounds.tokens, 1)
    assert deliveries == SUBMITTED + handed_back
