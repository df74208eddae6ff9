"""What a worker is made of: its parts, built from the settings. Nothing is opened here."""

from collections.abc import Callable

from dialback.ingress.engine import Engine
from dialback.ingress.handler import Ingress
from dialback.ingress.session import IngressSettings
from dialback.janitor import Janitor
from dialback.metrics.worker_metrics import WorkerMetrics
from dialback.outcomes import Handle
from dialback.queue.client import QueueClient
from dialback.queue.consumer import Consumer
from dialback.queue.dead_letter import DeadLetters
from dialback.queue.epochs import Epochs
from dialback.queue.lease import LeaseKeeper
from dialback.queue.notes import Notes
from dialback.queue.topology import Endpoint, Lane, Topology
from dialback.settings import Settings
from dialback.supervised import SupervisorLink
from dialback.transport.address import CallHomePolicy
from dialback.transport.dial import Dialer


class WorkerParts:
    """Builds the parts of one worker."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        engine: Engine,
        *,
        metrics: WorkerMetrics,
        name: str,
        on_healthy: Callable[[], None] | None,
    ) -> None:
        """Build with these; ``name`` is the worker's in logs and letters."""
        self._settings = settings
        self._endpoint = endpoint
        self._engine = engine
        self._metrics = metrics
        self._name = name
        self._on_healthy = on_healthy

    def dialer(self) -> Dialer:
        """Return what dials requesters."""
        settings = self._settings
        return Dialer(
            CallHomePolicy(settings.call_home_networks),
            settings.dial_settings(),
            on_retry=self._metrics.service.count_dial_retry,
        )

    def ingress(self) -> Ingress:
        """Return what handles deliveries."""
        settings = self._settings
        return Ingress(
            self._engine,
            self.dialer(),
            metrics=self._metrics.work_handler,
            service=self._metrics.service,
            settings=IngressSettings(
                stop_grace=settings.stop_grace, max_crashes=settings.max_crashes
            ),
            on_healthy=self._on_healthy,
        )

    def janitor(self, client: QueueClient) -> Janitor:
        """Return what answers for messages that nobody serves."""
        return Janitor(
            client,
            self._endpoint,
            dialer=self.dialer(),
            metrics=self._metrics.service,
            name=self._name,
            settings=self._settings.janitor_settings(),
        )

    def leases(
        self, *, on_closed: Callable[[], None], report: SupervisorLink | None
    ) -> LeaseKeeper:
        """Return what keeps the leases; see :class:`LeaseKeeper` for the arguments."""
        return LeaseKeeper(
            self._settings.server_address(),
            name=f"dialback-leases-{self._name}",
            ack_wait=self._settings.ack_wait,
            within=self._settings.connect_within,
            stuck_limit=self._settings.stuck_limit,
            on_late=self._metrics.service.count_heartbeat_late,
            on_closed=on_closed,
            report=report,
        )

    def consumer(
        self, client: QueueClient, leases: LeaseKeeper, topology: Topology, handle: Handle
    ) -> Consumer:
        """Return what pulls, settles and drains."""
        settings, service = self._settings, self._metrics.service
        return Consumer(
            client.connection,
            stream=self._endpoint.stream,
            lanes=[lane.value for lane in Lane],
            slots=settings.slots,
            reserved=settings.reserved_slots,
            handle=handle,
            leases=leases,
            settler=client.settler,
            dead_letters=DeadLetters(client.api, client.publisher, self._endpoint),
            notes=Notes(client.connection, client.publisher, restore=topology.ensure),
            epochs=Epochs(topology.created, topology.ensure),
            metrics=service,
            worker=self._name,
            policy=settings.retry_policy(),
            restore=topology.ensure,
        )
