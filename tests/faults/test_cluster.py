"""Three nats-servers under load: killed, put to rest, leaders moved. Nothing lost, nothing doubled.

Source: jetstream section 5, and F6, F7, F8, F11 of section 7.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from dialback import Requester, Settings
from dialback.queue.topology import Endpoint, Lane
from support import figures
from support.cluster import Cluster
from support.eventually import eventually
from support.load import COMPLETED, Answers, Load, workers
from support.queue_rig import lane_state, nothing_left, provision, stored

CALLERS = 16


@pytest.fixture
async def cluster() -> AsyncGenerator[Cluster]:
    """Three nodes for one test."""
    async with Cluster() as started:
        yield started


@asynccontextmanager
async def served(
    cluster: Cluster, endpoint: Endpoint, engine: Answers, *, ack_wait: float = 30.0
) -> AsyncGenerator[Load]:
    """Two workers of 16 slots and one requester; at the end nothing is left in the queue."""
    settings = Settings.load(
        server=cluster.url, replicas=3, slots=16, status_port=-1, ack_wait=ack_wait
    )
    await provision(cluster.client, endpoint, replicas=3, ack_wait=ack_wait)
    await _every_leader(cluster, endpoint)
    async with workers(engine, str(endpoint), settings, count=2), Requester(settings) as requester:
        yield Load(requester, str(endpoint))
        await _every_leader(cluster, endpoint)
        await nothing_left(cluster.client, endpoint)
        assert await stored(cluster.client, endpoint.dead_stream) == 0


async def _every_leader(cluster: Cluster, endpoint: Endpoint) -> None:
    await cluster.stream_leader(endpoint.stream)
    await cluster.stream_leader(endpoint.dead_stream)
    for lane in Lane:
        await cluster.consumer_leader(endpoint.stream, lane)


def conclude(fault: str, load: Load, engine: Answers) -> None:
    """Every request ended once, with all its items; write down what it took."""
    figures.record(
        fault=fault,
        submitted=load.submitted,
        **dict(load.outcomes),
        redelivered=engine.redelivered,
        run_twice=engine.runs.total() - len(engine.runs),
        longest_publish_gap=load.longest_gap,
    )
    assert load.outcomes == {COMPLETED: load.submitted}
    assert len(engine.runs) == load.submitted


@pytest.mark.timeout(400)
async def test_f6_the_stream_s_leader_is_killed_four_times(
    cluster: Cluster, endpoint: Endpoint
) -> None:
    engine = Answers(pause=0.03)
    async with served(cluster, endpoint, engine) as load:
        async with load.running(CALLERS):
            for _ in range(4):
                await load.goes_on()
                leader = await cluster.stream_leader(endpoint.stream)
                await cluster.kill(leader)
                await load.goes_on()
                await cluster.restart(leader)
    conclude("F6 kill -9 of the stream leader, 4 times", load, engine)


@pytest.mark.timeout(400)
@pytest.mark.ci
async def test_f7_every_node_is_put_to_rest_in_turn(cluster: Cluster, endpoint: Endpoint) -> None:
    engine = Answers(pause=0.03)
    async with served(cluster, endpoint, engine) as load:
        async with load.running(CALLERS):
            for node in cluster.nodes:
                await load.goes_on()
                await cluster.lame_duck(node)
                await load.goes_on()
                await cluster.restart(node)
            await load.goes_on()
    conclude("F7 SIGUSR2 (lame duck) of each node in turn", load, engine)


@pytest.mark.timeout(400)
@pytest.mark.ci
async def test_f8_all_nodes_are_killed_at_once(cluster: Cluster, endpoint: Endpoint) -> None:
    engine = Answers(pause=0.03)
    async with served(cluster, endpoint, engine) as load:
        async with load.running(CALLERS):
            await load.goes_on(200)
            await cluster.kill(*cluster.nodes)
            await cluster.restart(*cluster.nodes)
            await load.goes_on(200)
    conclude("F8 kill -9 of all three nodes", load, engine)


async def test_a_lease_outlives_an_election(cluster: Cluster, endpoint: Endpoint) -> None:
    """The longest election and the last renewal before it fit into ``ack_wait``."""
    engine = Answers(pause=10.0)
    async with served(cluster, endpoint, engine, ack_wait=20.0) as load:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2 * CALLERS):
                tasks.create_task(load.ask())
            await engine.started(2 * CALLERS)
            leader = await cluster.consumer_leader(endpoint.stream, Lane.NORMAL)
            await cluster.kill(leader)
        await cluster.restart(leader)
    conclude("kill -9 of the consumer leader while 32 requests of 30 s run", load, engine)
    assert engine.redelivered == 0


@pytest.mark.ci
async def test_f11_the_consumer_s_leader_steps_down_while_the_workers_wait(
    cluster: Cluster, endpoint: Endpoint
) -> None:
    engine = Answers()
    slowest = 0.0
    async with served(cluster, endpoint, engine) as load:
        for _ in range(5):
            await _all_wait(cluster, endpoint)
            await cluster.step_down(endpoint.stream, Lane.NORMAL)
            begun = time.monotonic()
            await load.ask()
            slowest = max(slowest, time.monotonic() - begun)
    figures.record(
        fault="F11 consumer leader steps down in an idle pull, 5 times",
        submitted=load.submitted,
        **dict(load.outcomes),
        redelivered=engine.redelivered,
        slowest_answer=slowest,
    )
    assert load.outcomes == {COMPLETED: load.submitted}
    assert engine.runs.total() == load.submitted


async def _all_wait(cluster: Cluster, endpoint: Endpoint) -> None:
    """Wait until both workers have a pull at the consumer's leader."""
    await cluster.consumer_leader(endpoint.stream, Lane.NORMAL)

    async def waiting() -> int:
        return int((await lane_state(cluster.client, endpoint, Lane.NORMAL))["num_waiting"])

    await eventually(waiting, lambda count: count == 2)
