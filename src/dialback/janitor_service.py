"""A janitor in a process of its own: for queues whose workers are away, and for cron.

Looks after named endpoints, or after all queues of the account. Runs until SIGTERM or SIGINT.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version

from dialback.errors import QueueError
from dialback.janitor import Janitor, Swept
from dialback.metrics.exposition import Health
from dialback.metrics.service import ServiceMetrics
from dialback.metrics.worker_metrics import Registry
from dialback.outcomes import DeliveryEnd, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.connection import ConnectionEvents
from dialback.queue.janitor import DEFAULT_INTERVAL
from dialback.queue.topology import Endpoint
from dialback.settings import Settings
from dialback.signals import on_signals
from dialback.tasks import cancel_and_wait
from dialback.transport.address import CallHomePolicy
from dialback.transport.dial import Dialer
from dialback.worker_exit import WorkerExit
from dialback.worker_health import start_status

logger = logging.getLogger(__name__)


class JanitorService:
    """Looks after several queues."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint] = (),
        *,
        settings: Settings,
        registry: Registry | None = None,
    ) -> None:
        """Wire a service; nothing is opened before :meth:`run`.

        Args:
            endpoints: Whose queues; all there are, if none is named.
            settings: Settings.
            registry: Prometheus registry; one of its own by default.
        """
        self._endpoints = tuple(endpoints)
        self._settings = settings
        self._name = f"{settings.worker_name}-{os.getpid()}"
        self.registry = registry if registry is not None else Registry()
        self._metrics = ServiceMetrics(
            self.registry,
            outcomes=Outcome,
            delivery_ends=DeliveryEnd,
            version=version("dialback"),
            slots=0,
        )
        policy = CallHomePolicy(settings.call_home_networks)
        self._dialer = Dialer(
            policy, settings.dial_settings(), on_retry=self._metrics.count_dial_retry
        )
        self._janitors: dict[Endpoint, asyncio.Task[None]] = {}
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._connected = self._closed = self._ending = False
        self._total = Swept()
        self.status_port: int | None = None

    def stop(self) -> None:
        """End: what is under way is left to the next janitor."""
        self._stop.set()

    async def run(self, *, once: bool = False, signals: bool = True) -> WorkerExit:
        """Sweep until :meth:`stop` or a signal.

        Args:
            once: Make one pass and end; trouble is raised then and not only logged.
            signals: Whether SIGTERM and SIGINT call :meth:`stop`.

        Raises:
            ServerUnavailableError: If NATS cannot be reached at the start.
            ConfigError: If the status port is taken.
            QueueError: With ``once``, if the pass failed.
        """
        async with AsyncExitStack() as stack:
            if signals:
                await stack.enter_async_context(on_signals(self.stop))
            working = asyncio.create_task(self._work(stack, once=once), name="janitors")
            stopping = asyncio.create_task(self._stop.wait(), name="stop")
            try:
                await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_and_wait(working, stopping)
                await self._dismiss(list(self._janitors))
            if not working.cancelled() and (error := working.exception()) is not None:
                raise error
            logger.info(
                "janitor ended",
                extra={"answered": self._total.answered, "ended": self._total.ended},
            )
        return WorkerExit.DISCONNECTED if self._closed else WorkerExit.CLEAN

    async def _work(self, stack: AsyncExitStack, *, once: bool) -> None:
        client = await self._start(stack, status=not once)
        if once:
            for endpoint in await self._wanted(client):
                await self._sweep_once(client, endpoint)
            return
        while True:
            await self._look_round(client)
            await asyncio.sleep(self._settings.janitor_interval or DEFAULT_INTERVAL)

    async def _start(self, stack: AsyncExitStack, *, status: bool) -> QueueClient:
        settings = self._settings
        if status and settings.status_port >= 0:
            server, self.status_port = await start_status(
                self.registry,
                host=settings.status_host,
                port=settings.status_port,
                health=self._health,
            )
            stack.push_async_callback(server.stop)
        client = await QueueClient.open(
            settings.server_address(),
            name=f"dialback-janitor-{self._name}",
            role="operator",
            within=settings.connect_within,
            events=ConnectionEvents(
                disconnected=self._on_disconnected,
                reconnected=self._on_reconnected,
                closed=self._on_closed,
            ),
        )
        stack.push_async_callback(self._disconnect, client)
        self._connected = True
        logger.info(
            "janitor started",
            extra={
                "version": version("dialback"),
                "endpoints": [str(endpoint) for endpoint in self._endpoints] or "all",
                "janitor": self._name,
                "nats_server": client.server_version,
                "interval": settings.janitor_interval,
                "unserved_limit": settings.unserved_limit,
                "status_port": self.status_port,
            },
        )
        return client

    # --- the janitors -----------------------------------------------------------------

    async def _wanted(self, client: QueueClient) -> list[Endpoint]:
        if self._endpoints:
            return list(self._endpoints)
        names = await client.api.stream_names()
        found = [Endpoint.of_stream(name) for name in names if name.startswith("JOBS_")]
        return [endpoint for endpoint in found if endpoint is not None]

    async def _look_round(self, client: QueueClient) -> None:
        """Have one janitor for each queue there is."""
        try:
            wanted = await self._wanted(client)
        except QueueError as error:
            logger.warning("queues cannot be listed at the moment", extra={"reason": str(error)})
            return
        await self._dismiss([endpoint for endpoint in self._janitors if endpoint not in wanted])
        for endpoint in wanted:
            if endpoint not in self._janitors:
                janitor = self._hire(client, endpoint)
                task = asyncio.create_task(janitor.run(), name=f"janitor-{endpoint}")
                self._janitors[endpoint] = task

    async def _dismiss(self, endpoints: Sequence[Endpoint]) -> None:
        tasks = [self._janitors.pop(endpoint) for endpoint in endpoints]
        await cancel_and_wait(*tasks)

    def _hire(self, client: QueueClient, endpoint: Endpoint) -> Janitor:
        return Janitor(
            client,
            endpoint,
            dialer=self._dialer,
            metrics=self._metrics,
            name=self._name,
            settings=self._settings.janitor_settings(),
            total=self._total,
        )

    async def _sweep_once(self, client: QueueClient, endpoint: Endpoint) -> None:
        janitor = self._hire(client, endpoint)
        try:
            swept = await janitor.sweep()
        finally:
            await janitor.release()
        logger.info(
            "queue swept" if swept.claimed else "another janitor looks after the queue",
            extra={
                "endpoint": str(endpoint),
                "answered": swept.answered,
                "ended": swept.ended,
            },
        )

    # --- the connection ---------------------------------------------------------------

    def _health(self) -> Health:
        return Health(
            ready=self._connected,
            endpoint="janitor",
            uptime=time.monotonic() - self._started,
            reasons=() if self._connected else ("not connected to NATS",),
        )

    def _on_disconnected(self) -> None:
        self._connected = False
        if not self._ending:
            logger.warning("disconnected from NATS, reconnecting")

    def _on_reconnected(self) -> None:
        self._connected = True
        self._metrics.count_reconnect()
        logger.info("reconnected to NATS")

    def _on_closed(self) -> None:
        self._connected = False
        if not self._ending:
            logger.error("NATS closed the connection for good; ending")
            self._closed = True
            self._stop.set()

    async def _disconnect(self, client: QueueClient) -> None:
        self._ending = True
        await client.close()
