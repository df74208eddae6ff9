"""Dynamo's worker metrics: same names, HELP texts, labels and buckets as a 1.6.1 worker.

One deliberate difference: Dynamo shows a series of ``errors_total`` with its first error only;
here all seven exist at 0 from the start, so that a rate over the first error is not lost.
What is counted when is the caller's business (protocol, section 12); no I/O here.
"""

import re
import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from dialback.metrics import names
from dialback.metrics.names import ErrorType
from dialback.metrics.registration import Distribution, Tally, counter, gauge, histogram

_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)


class WorkHandlerMetrics:
    """The series of the one endpoint that a process serves. One instance per registry.

    Attributes:
        response_bytes: Of item and final bodies: the body's length is added before it is written.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        namespace: str,
        component: str,
        endpoint: str,
        worker_id: str,
        labels: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Register every series at 0.

        Args:
            registry: Where the series go.
            namespace: Value of ``dynamo_namespace``.
            component: Value of ``dynamo_component``.
            endpoint: Value of ``dynamo_endpoint``.
            worker_id: Instance id in lower hex.
            labels: Further labels for the per-endpoint series, for instance ``model``.
            clock: Monotonic time in seconds, for the uptime.

        Raises:
            ValueError: A label name is reserved or malformed, or the registry has the series.
        """
        values = _endpoint_labels(namespace, component, endpoint, worker_id, labels or {})
        self._register_endpoint(registry, values)
        self._register_process(registry, worker_id, clock)

    def _register_endpoint(self, registry: CollectorRegistry, values: dict[str, str]) -> None:
        keys = tuple(values)
        self._requests = Tally(registry, names.REQUESTS, values)
        self._duration = Distribution(registry, names.REQUEST_DURATION, values)
        self._inflight = 0
        inflight = gauge(registry, names.INFLIGHT_REQUESTS, keys).labels(**values)
        inflight.set_function(lambda: self._inflight)
        self._request_bytes = Tally(registry, names.REQUEST_BYTES, values)
        self.response_bytes = Tally(registry, names.RESPONSE_BYTES, values)
        self._cancellations = counter(registry, names.CANCELLATION, keys).labels(**values)
        errors = counter(registry, names.ERRORS, (*keys, names.ERROR_TYPE_LABEL))
        self._errors = {
            error_type: errors.labels(**values, **{names.ERROR_TYPE_LABEL: error_type})
            for error_type in ErrorType
        }

    def _register_process(
        self, registry: CollectorRegistry, worker_id: str, clock: Callable[[], float]
    ) -> None:
        started = clock()
        uptime = gauge(registry, names.UPTIME, (names.WORKER_ID_LABEL,)).labels(worker_id)
        uptime.set_function(lambda: clock() - started)
        self._transit = Distribution(registry, names.NETWORK_TRANSIT, {})
        self._first_response = Distribution(registry, names.TIME_TO_FIRST_RESPONSE, {})
        _register_tcp_plane(registry)

    def request_began(self, request_bytes: int) -> None:
        """Count one request; :meth:`request_ended` follows, whatever comes of it.

        Args:
            request_bytes: Length of the whole NATS payload, frame prefix included.
        """
        self._requests.value += 1
        self._inflight += 1
        self._request_bytes.value += request_bytes

    def request_ended(self, seconds: float) -> None:
        """Lower the in-flight gauge and record the request's duration."""
        self._inflight -= 1
        self._duration.observe(seconds)

    def observe_transit(self, seconds: float) -> None:
        """Record the time from the requester's sending to this worker, in seconds.

        The two clocks are of different hosts, so a negative time is possible: it counts as 0.
        """
        self._transit.observe(max(0.0, seconds))

    def observe_first_response(self, seconds: float) -> None:
        """Record the time from a request's entry to its queued prologue, in seconds."""
        self._first_response.observe(seconds)

    def count_error(self, error_type: ErrorType) -> None:
        """Count one error of a request."""
        self._errors[error_type].inc()

    def count_cancellation(self) -> None:
        """Count one request that its requester stopped, killed or left."""
        self._cancellations.inc()


def _endpoint_labels(
    namespace: str, component: str, endpoint: str, worker_id: str, extra: Mapping[str, str]
) -> dict[str, str]:
    reserved = sorted(names.RESERVED_LABELS & extra.keys())
    if reserved:
        raise ValueError(f"reserved label names: {', '.join(reserved)}")
    malformed = sorted(name for name in extra if not _LABEL_NAME.fullmatch(name))
    if malformed:
        raise ValueError(f"malformed label names: {malformed}")
    return {
        names.NAMESPACE_LABEL: namespace,
        names.COMPONENT_LABEL: component,
        names.ENDPOINT_LABEL: endpoint,
        names.WORKER_ID_LABEL: worker_id,
        **extra,
    }


def _register_tcp_plane(registry: CollectorRegistry) -> None:
    """Expose the series of Dynamo's TCP request plane at 0, so that dashboards find them."""
    for series in names.TCP_PLANE_GAUGES:
        gauge(registry, series)
    for series in names.TCP_PLANE_COUNTERS:
        counter(registry, series)
    for series in names.TCP_PLANE_HISTOGRAMS:
        histogram(registry, series)
