"""The composition root of a worker: wires everything, signals, drain, exit code.

NATS connection, topology, engine, lease thread, ingress, consumer, status server. Runs until
SIGTERM or SIGINT, then drains. Source: overview sections 2 and 8, operator 2.2.
"""

import asyncio
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from enum import IntEnum
from importlib.metadata import version
from typing import Any, Final, TypeVar

from dialback.errors import ConfigError
from dialback.ingress.engine import Engine
from dialback.ingress.exchange import IngressSettings
from dialback.ingress.handler import Ingress
from dialback.metrics.exposition import Health, StatusServer
from dialback.metrics.worker_metrics import Registry, WorkerMetrics
from dialback.outcomes import DeliveryEnd, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents
from dialback.queue.consumer import Consumer, Drained
from dialback.queue.dead_letter import DeadLetters
from dialback.queue.lease import LeaseKeeper
from dialback.queue.topology import Endpoint, Lane, Topology
from dialback.settings import Settings
from dialback.transport.address import CallHomePolicy
from dialback.transport.dial import Dialer

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_PULSE: Final = 0.5  # seconds between two signs of life of the event loop
_READY_TIMEOUT: Final = 5.0  # seconds for one answer of the engine's ready()
_LEAST_BUDGET: Final = 1.0  # seconds that every step of the end gets
_PULL_STALE: Final = 60.0  # seconds without an answered pull or heartbeat: not ready
_GRACE_ADVICE: Final = 10  # seconds a pod should get on top of the shutdown budget
_RESERVE_SHARE: Final = 0.25  # of the shutdown budget, for ending what has not finished


class WorkerExit(IntEnum):
    """How a worker ended: the exit codes of ``dialback worker run``."""

    CLEAN = 0
    """Drained; nothing was interrupted."""
    DISCONNECTED = 69
    """NATS closed the connection for good (credentials expired, for instance)."""
    INTERRUPTED = 75
    """The shutdown budget ran out: running requests were ended."""
    FORCED = 143
    """A second signal ended running requests."""


class Worker:
    """Serves one endpoint with one engine."""

    def __init__(
        self,
        engine: object,
        *,
        endpoint: str,
        settings: Settings | None = None,
        registry: Registry | None = None,
        on_healthy: Callable[[], None] = lambda: None,
    ) -> None:
        """Wire a worker; nothing is opened before :meth:`run`.

        Args:
            engine: An engine function or object, or an :class:`~dialback.Engine`.
            endpoint: ``namespace.component.endpoint``.
            settings: Settings; the environment's by default.
            registry: Prometheus registry; one of its own by default.
            on_healthy: Called after each good item that was sent, and at a clean end.

        Raises:
            ConfigError: If the engine, the endpoint or the settings are wrong.
        """
        self._settings = settings or Settings.load()
        self._engine = engine if isinstance(engine, Engine) else Engine(engine)
        self._endpoint = Endpoint.parse(endpoint)
        self._worker_id = f"{secrets.randbits(63):x}"
        self._name = f"{self._settings.worker_name}-{os.getpid()}"
        self._on_healthy = on_healthy
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
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closed = False
        self._started = time.monotonic()
        self._stopped_at: float | None = None
        self._engine_ready = False
        self._connected = False
        self._consumer: Consumer | None = None
        self.status_port: int | None = None

    def stop(self) -> None:
        """Drain and end; a second call ends running requests too."""
        if self._stop.is_set():
            self._hurry.set()
        else:
            self._stopped_at = time.monotonic()
        self._stop.set()

    async def run(self, *, signals: bool = True) -> WorkerExit:
        """Serve until :meth:`stop` or a signal, then drain.

        Args:
            signals: Whether SIGTERM and SIGINT call :meth:`stop`.

        Raises:
            ServerUnavailableError: If NATS cannot be reached at the start.
            ConfigMismatchError: If stream or consumer have other settings than needed.
            ConfigError: If the status port is taken.
        """
        async with AsyncExitStack() as stack:
            if signals:
                await stack.enter_async_context(_signals(self.stop))
            consumer = await self._unless_stopped(self._start(stack))
            drained = Drained()
            if consumer is not None:
                await self._serve(consumer)
                drained = await self._drain(consumer)
        return self._exit(drained)

    async def _unless_stopped(self, starting: Coroutine[Any, Any, _T]) -> _T | None:
        """Await a part of the start; cancel it and return ``None`` when told to stop."""
        work = asyncio.create_task(starting, name="start")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait((work,), timeout=self._budget_left())
        return work.result() if work.done() and not work.cancelled() else None

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
        await topology.ensure()
        stack.push_async_callback(self._shut_engine_down)
        await self._engine.startup()
        leases = LeaseKeeper(
            settings.server_address(),
            name=f"dialback-leases-{self._name}",
            ack_wait=settings.ack_wait,
            within=settings.connect_within,
            on_late=self.metrics.service.count_heartbeat_late,
            on_closed=self._on_closed,
        )
        await leases.start()
        stack.push_async_callback(leases.stop)
        for name, work in (("pulse", _pulse(leases)), ("watch-engine", self._watch_engine())):
            stack.callback(asyncio.create_task(work, name=name).cancel)
        consumer = self._consumer = self._build_consumer(client, leases, topology)
        self._announce(client)
        return consumer

    async def _start_status(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        if settings.status_port < 0:
            return
        status = StatusServer(
            self.metrics.registry,
            host=settings.status_host,
            port=settings.status_port,
            health=self._health,
        )
        try:
            self.status_port = await status.start()
        except OSError as error:
            raise ConfigError(
                f"status server: {error.strerror or error}; set DIALBACK_STATUS_PORT (0: any"
                " free port, -1: off)"
            ) from error
        stack.push_async_callback(status.stop)

    def _build_consumer(
        self, client: QueueClient, leases: LeaseKeeper, topology: Topology
    ) -> Consumer:
        settings, service = self._settings, self.metrics.service
        ingress = Ingress(
            self._engine,
            Dialer(
                CallHomePolicy(settings.call_home_networks),
                settings.dial_settings(),
                on_retry=service.count_dial_retry,
            ),
            metrics=self.metrics.work_handler,
            service=service,
            settings=IngressSettings(
                stop_grace=settings.stop_grace, max_crashes=settings.max_crashes
            ),
            on_healthy=self._on_healthy,
        )
        return Consumer(
            client.connection,
            stream=self._endpoint.stream,
            lanes=[lane.value for lane in Lane],
            slots=settings.slots,
            handle=ingress.handle,
            leases=leases,
            settler=client.settler,
            dead_letters=DeadLetters(client.api, client.publisher, self._endpoint),
            metrics=service,
            worker=self._name,
            policy=settings.retry_policy(),
            restore=topology.ensure,
        )

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

    async def _serve(self, consumer: Consumer) -> None:
        """Pull until told to stop, or until the pull loop dies."""
        pulling = asyncio.create_task(consumer.run(), name="pull-loop")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((pulling, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            consumer.puller.stop()
            await pulling

    async def _watch_engine(self) -> None:
        """Ask the engine again and again whether it is ready."""
        while True:
            try:
                async with asyncio.timeout(_READY_TIMEOUT):
                    self._engine_ready = await self._engine.ready()
            except Exception:
                self._engine_ready = False
                logger.exception("the engine's ready() failed, or took more than 5 s")
            await asyncio.sleep(_PULSE)

    def _health(self) -> Health:
        reasons: list[str] = []
        if self._stop.is_set():
            reasons.append("draining")
        if not self._connected:
            reasons.append("not connected to NATS")
        if not self._engine_ready:
            reasons.append("engine not ready")
        last_pull = self.metrics.service.last_pull
        if self._has_free_slots() and time.time() - last_pull > _PULL_STALE:
            reasons.append("no pull was answered yet" if not last_pull else "pulls are stale")
        return Health(
            ready=not reasons,
            endpoint=self._endpoint.endpoint,
            uptime=time.monotonic() - self._started,
            reasons=tuple(reasons),
        )

    def _has_free_slots(self) -> bool:
        """Whether pulls should be under way: with every slot taken there are none."""
        consumer = self._consumer
        return self._connected and (consumer is None or consumer.in_flight < self._settings.slots)

    def _on_disconnected(self) -> None:
        self._connected = False
        if not self._stop.is_set():
            logger.warning("disconnected from NATS, reconnecting")

    def _on_reconnected(self) -> None:
        self._connected = True
        self.metrics.service.count_reconnect()
        logger.info("reconnected to NATS")
        if self._consumer is not None:
            self._consumer.puller.reset()

    def _on_closed(self) -> None:
        self._connected = False
        if not self._closed:
            logger.error("NATS closed the connection for good; ending")
            self._closed = True
            self._stop.set()
            self._hurry.set()

    # --- the end ----------------------------------------------------------------------

    def _budget_left(self) -> float:
        """Seconds of the shutdown budget that are left, counted from the first signal."""
        begun = self._stopped_at
        used = time.monotonic() - begun if begun is not None else 0.0
        return max(_LEAST_BUDGET, self._settings.shutdown_budget - used)

    async def _shut_engine_down(self) -> None:
        """Run the engine's ``shutdown()``, but not for longer than there is time."""
        closing = asyncio.create_task(self._engine.shutdown(), name="engine-shutdown")
        hurry = asyncio.create_task(self._hurry.wait(), name="hurry")
        await asyncio.wait(
            (closing, hurry), timeout=self._budget_left(), return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if not closing.done():
            closing.cancel()
            logger.error("the engine's shutdown() did not end in time and was cancelled")
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            logger.error("the engine's shutdown() failed", exc_info=error)

    async def _drain(self, consumer: Consumer) -> Drained:
        budget = self._budget_left()
        self.metrics.service.set_draining(True)
        logger.info("draining", extra={"running": consumer.in_flight, "budget": budget})
        return await consumer.drain(budget, reserve=budget * _RESERVE_SHARE, hurry=self._hurry)

    async def _disconnect(self, client: QueueClient) -> None:
        was_closed, self._closed = self._closed, True
        await client.close()
        self._closed = was_closed

    def _exit(self, drained: Drained) -> WorkerExit:
        clean = drained.interrupted == 0 and drained.abandoned == 0
        if self._closed:
            code = WorkerExit.DISCONNECTED
        elif self._hurry.is_set() and not clean:
            code = WorkerExit.FORCED
        else:
            code = WorkerExit.CLEAN if clean else WorkerExit.INTERRUPTED
        logger.info(
            "worker ended",
            extra={
                "interrupted": drained.interrupted,
                "abandoned": drained.abandoned,
                "exit_code": int(code),
            },
        )
        return code


async def _pulse(leases: LeaseKeeper) -> None:
    """Say that the event loop turns; nothing else may hold this up."""
    while True:
        leases.loop_turned()
        await asyncio.sleep(_PULSE)


@asynccontextmanager
async def _signals(stop: Callable[[], None]) -> AsyncGenerator[None]:
    """Let SIGTERM and SIGINT call ``stop``; a third one has its default effect."""
    loop = asyncio.get_running_loop()
    received = 0

    def handle(number: signal.Signals) -> None:
        nonlocal received
        received += 1
        logger.info("signal received", extra={"signal": number.name, "count": received})
        stop()
        if received > 1:
            _remove()

    def _remove() -> None:
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(one)

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, handle, one)
    try:
        yield
    finally:
        _remove()
