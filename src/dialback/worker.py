"""The composition root of a worker: wires everything, signals, drain, exit code.

NATS connection, topology, engine, lease thread, ingress, consumer, status server. Runs until
SIGTERM or SIGINT, then drains. Source: overview sections 2 and 8, operator 2.2.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Final

from dialback.ingress.engine import Engine
from dialback.metrics.exposition import Health
from dialback.metrics.worker_metrics import Registry, WorkerMetrics
from dialback.outcomes import DeliveryEnd, Outcome
from dialback.queue.cancellation import Cancellations, CancelListener
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents
from dialback.queue.consumer import Consumer, Drained
from dialback.queue.lease import LeaseKeeper
from dialback.queue.topology import Endpoint, Topology
from dialback.settings import Settings
from dialback.signals import on_signals
from dialback.supervised import SupervisorLink
from dialback.tasks import cancel_and_wait
from dialback.worker_engine import EngineLife
from dialback.worker_exit import WorkerExit
from dialback.worker_health import PullHealth, not_ready, start_status
from dialback.worker_parts import WorkerParts
from dialback.worker_shutdown import Shutdown

logger = logging.getLogger(__name__)

_PULSE: Final = 0.5  # seconds between two signs of life of the event loop
_LAST_PULSE: Final = 1.0  # seconds for an engine's ready() to heed its cancellation
_GRACE_ADVICE: Final = 10  # seconds a pod should get on top of the shutdown budget
_ELECTION: Final = 30.0  # seconds a start waits for JetStream; a cluster's election takes ten
_RESERVE_SHARE: Final = 0.25  # of the shutdown budget, for ending what has not finished


class Worker:
    """Serves one endpoint with one engine."""

    def __init__(
        self,
        engine: object,
        *,
        endpoint: str,
        settings: Settings | None = None,
        registry: Registry | None = None,
        on_healthy: Callable[[], None] | None = None,
        supervisor: SupervisorLink | None = None,
    ) -> None:
        """Wire a worker; nothing is opened before :meth:`run`.

        Args:
            engine: An engine function or object, or an :class:`~dialback.Engine`.
            endpoint: ``namespace.component.endpoint``.
            settings: Settings; the environment's by default.
            registry: Prometheus registry; one of its own by default.
            on_healthy: Called after each good item that was sent, and at a clean end.
            supervisor: The process's link to its supervisor, if it has one.

        Raises:
            ConfigError: If the engine, the endpoint or the settings are wrong.
        """
        self._settings = settings or Settings.load()
        self._engine = engine if isinstance(engine, Engine) else Engine(engine)
        self._endpoint = Endpoint.parse(endpoint)
        self._worker_id = f"{secrets.randbits(63):x}"
        self._name = f"{self._settings.worker_name}-{os.getpid()}"
        self._supervisor = supervisor
        self.metrics = WorkerMetrics.create(
            registry,
            namespace=self._endpoint.namespace,
            component=self._endpoint.component,
            endpoint=self._endpoint.endpoint,
            worker_id=self._worker_id,
            outcomes=Outcome,
            delivery_ends=DeliveryEnd,
            version=version("dialback"),
            slots=self._settings.slots,
        )
        self._parts = WorkerParts(
            self._settings,
            self._endpoint,
            self._engine,
            metrics=self.metrics,
            name=self._name,
            on_healthy=on_healthy,
        )
        self._shutdown = Shutdown(self._settings.shutdown_budget)
        self._started = time.monotonic()
        self._engine_life = EngineLife(self._engine)
        self._pulls = PullHealth(self._settings.pull_watchdog)
        self._connected = False
        self._consumer: Consumer | None = None
        self.status_port: int | None = None

    def stop(self) -> None:
        """Drain and end; a second call ends running requests too."""
        self._shutdown.begin()

    async def run(self, *, signals: bool = True) -> WorkerExit:
        """Serve until :meth:`stop` or a signal, then drain.

        Args:
            signals: Whether SIGTERM and SIGINT call :meth:`stop`.

        Raises:
            ServerUnavailableError: If NATS cannot be reached at the start.
            ConfigMismatchError: If stream or consumer have other settings than needed.
            ConfigError: If the status port is taken.
            DialbackError: If the engine's ``startup()`` fails.
        """
        async with AsyncExitStack() as stack:
            if signals:
                await stack.enter_async_context(on_signals(self.stop))
            if self._supervisor is not None:
                stack.enter_context(self._supervisor.watched(self.stop))
            consumer = await self._shutdown.unless_begun(self._start(stack))
            drained = Drained()
            if consumer is not None:
                drained = await self._serve(consumer)
        return self._shutdown.exit(drained)

    # --- start ------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> Consumer:
        settings = self._settings
        await self._start_status(stack)
        client = await QueueClient.open(
            settings.server_address(),
            name=f"dialback-worker-{self._name}",
            role="worker",
            within=settings.connect_within,
            events=ConnectionEvents(
                disconnected=self._on_disconnected,
                reconnected=self._on_reconnected,
                closed=self._on_closed,
            ),
        )
        stack.push_async_callback(self._disconnect, client)
        self._connected = True
        topology = Topology(client.api, self._endpoint, settings.queue_settings())
        await topology.ensure(within=_ELECTION)
        stack.push_async_callback(self._shut_engine_down)
        await self._engine.startup()
        leases = self._parts.leases(on_closed=self._on_closed, report=self._supervisor)
        stack.push_async_callback(leases.stop)  # first: a cancelled start leaves a thread, too
        await leases.start()
        for name, work in (("pulse", _pulse(leases)), ("watch-engine", self._engine_life.watch())):
            task = asyncio.create_task(work, name=name)
            stack.push_async_callback(cancel_and_wait, task, within=_LAST_PULSE)
        ingress = self._parts.ingress()
        stack.callback(ingress.close)
        cancellations = Cancellations(ingress.handle, worker=self._name)
        consumer = self._consumer = self._parts.consumer(
            client, leases, topology, cancellations.handle
        )
        await CancelListener(client.connection, self._endpoint, cancellations).start()
        if settings.janitor_interval > 0:
            sweeping = self._parts.janitor(client).run(delay=settings.janitor_interval)
            janitor = asyncio.create_task(sweeping, name="janitor")
            stack.push_async_callback(cancel_and_wait, janitor)
        self._announce(client)
        if self._supervisor is not None:
            self._supervisor.ready()
        return consumer

    async def _start_status(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        if settings.status_port < 0:
            return
        status, self.status_port = await start_status(
            self.metrics.registry,
            host=settings.status_host,
            port=settings.status_port,
            health=self._health,
        )
        stack.push_async_callback(status.stop)

    def _announce(self, client: QueueClient) -> None:
        settings = self._settings
        logger.info(
            "worker started",
            extra={
                "version": version("dialback"),
                "endpoint": str(self._endpoint),
                "engine": self._engine.name,
                "worker": self._name,
                "worker_id": self._worker_id,
                "stream": self._endpoint.stream,
                "nats_server": client.server_version,
                "slots": settings.slots,
                "ack_wait": settings.ack_wait,
                "shutdown_budget": settings.shutdown_budget,
                "advice": "give the pod a terminationGracePeriodSeconds of at least"
                f" {settings.shutdown_budget + _GRACE_ADVICE:g}",
                "status_port": self.status_port,
            },
        )

    # --- run --------------------------------------------------------------------------

    async def _serve(self, consumer: Consumer) -> Drained:
        """Pull until told to stop, or until pulls cannot be revived; then drain."""
        pulling = asyncio.create_task(consumer.run(), name="pull-loop")
        pulling.add_done_callback(self._on_pull_loop_ended)
        watching = asyncio.create_task(self._watch_pulls(consumer), name="watch-pulls")
        stopping = asyncio.create_task(self._shutdown.begun.wait(), name="stop")
        try:
            await asyncio.wait((pulling, stopping), return_when=asyncio.FIRST_COMPLETED)
            consumer.puller.stop()
            await cancel_and_wait(watching)
            drained = await self._drain(consumer)
            await asyncio.wait((pulling,), timeout=self._shutdown.budget_left())
        finally:
            await cancel_and_wait(pulling, watching, stopping)
        return drained

    async def _watch_pulls(self, consumer: Consumer) -> None:
        puller, service = consumer.puller, self.metrics.service
        while not self._pulls.dead:
            await asyncio.sleep(_PULSE)
            self._pulls.look(
                heard=puller.heard,
                answered=service.last_pull,
                pulling=self._connected and puller.has_room,
            )
        self._shutdown.pulls_failed(
            f"no pull was answered for {self._settings.pull_watchdog:g} s though connected and"
            " slots are free"
        )

    def _on_pull_loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._shutdown.pulls_failed("the pull loop failed", error)

    def _health(self) -> Health:
        reasons = not_ready(
            draining=self._shutdown.begun.is_set(),
            connected=self._connected,
            engine_ready=self._engine_life.ready,
            pulls=self._pulls,
        )
        return Health(
            ready=not reasons,
            endpoint=self._endpoint.endpoint,
            uptime=time.monotonic() - self._started,
            reasons=reasons,
        )

    def _on_disconnected(self) -> None:
        self._connected = False
        if not self._shutdown.begun.is_set():
            logger.warning("disconnected from NATS, reconnecting")

    def _on_reconnected(self) -> None:
        self._connected = True
        self.metrics.service.count_reconnect()
        logger.info("reconnected to NATS")
        if self._consumer is not None:
            self._consumer.puller.reset()

    def _on_closed(self) -> None:
        self._connected = False
        self._shutdown.connection_closed()

    # --- the end ----------------------------------------------------------------------

    async def _shut_engine_down(self) -> None:
        await self._engine_life.shut_down(self._shutdown.budget_left(), self._shutdown.hurry)

    async def _drain(self, consumer: Consumer) -> Drained:
        budget = self._shutdown.budget_left()
        self.metrics.service.set_draining(True)
        logger.info("draining", extra={"running": consumer.in_flight, "budget": budget})
        return await consumer.drain(
            budget, reserve=budget * _RESERVE_SHARE, hurry=self._shutdown.hurry
        )

    async def _disconnect(self, client: QueueClient) -> None:
        was_closed, self._shutdown.closed = self._shutdown.closed, True
        await client.close()
        self._shutdown.closed = was_closed


async def _pulse(leases: LeaseKeeper) -> None:
    """Say that the event loop turns; nothing else may hold this up."""
    while True:
        leases.loop_turned()
        await asyncio.sleep(_PULSE)
