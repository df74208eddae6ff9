"""A worker's registry with both sets of series on it.

Composition roots take the registry's type from here: only this folder knows Prometheus.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, TypeAlias

from prometheus_client import CollectorRegistry

from dialback.metrics.service import ServiceMetrics
from dialback.metrics.work_handler import WorkHandlerMetrics

Registry: TypeAlias = CollectorRegistry


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """All series of one worker.

    Attributes:
        registry: Where they are registered.
        work_handler: Dynamo's series.
        service: Our own.
    """

    registry: Registry
    work_handler: WorkHandlerMetrics
    service: ServiceMetrics

    @classmethod
    def create(
        cls,
        registry: Registry | None,
        *,
        namespace: str,
        component: str,
        endpoint: str,
        worker_id: str,
        outcomes: Iterable[str],
        delivery_ends: Iterable[str],
        version: str,
        slots: int,
    ) -> Self:
        """Register all series on ``registry``, or on a new one.

        Raises:
            ValueError: If the registry has them already.
        """
        on = registry if registry is not None else CollectorRegistry()
        dynamo = WorkHandlerMetrics(
            on, namespace=namespace, component=component, endpoint=endpoint, worker_id=worker_id
        )
        service = ServiceMetrics(
            on, outcomes=outcomes, delivery_ends=delivery_ends, version=version, slots=slots
        )
        return cls(on, dynamo, service)
