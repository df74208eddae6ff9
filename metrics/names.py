"""Names, HELP texts, buckets and label values of every series. Plain values, nothing else.

Mirrors what a Dynamo 1.6.1 worker exposes; its names come from ``metrics/prometheus_names.rs``
in Dynamo's ``lib/runtime/src``. What starts with ``dialback_`` is this project's own.
"""

from dataclasses import dataclass
from enum import StrEnum


class ErrorType(StrEnum):
    """The values of ``error_type``, as Dynamo's ``work_handler::error_types`` writes them."""

    INVALID_MESSAGE = "invalid_message"
    DESERIALIZATION = "deserialization"
    RESPONSE_STREAM = "response_stream"
    GENERATE = "generate"
    SERIALIZATION = "serialization"
    PUBLISH_RESPONSE = "publish_response"
    PUBLISH_FINAL = "publish_final"


class PublishStage(StrEnum):
    """What was being written when publishing failed."""

    RESPONSE = "response"
    FINAL = "final"


class PublishCause(StrEnum):
    """Why publishing failed."""

    CLIENT_DISCONNECT = "client_disconnect"
    TRANSPORT_FAILURE = "transport_failure"


class PullErrorKind(StrEnum):
    """Why a pull from the work queue ended without being served."""

    STATUS = "status"
    MISSED_HEARTBEATS = "missed_heartbeats"
    RECONNECTED = "reconnected"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric family as it is exposed.

    Attributes:
        name: Full name, with ``_total`` for a counter.
        documentation: The HELP text.
        buckets: Upper bounds of a histogram in seconds, ascending, without ``+Inf``.
    """

    name: str
    documentation: str
    buckets: tuple[float, ...] = ()


# --- Labels -----------------------------------------------------------------------------

NAMESPACE_LABEL = "dynamo_namespace"
COMPONENT_LABEL = "dynamo_component"
ENDPOINT_LABEL = "dynamo_endpoint"
WORKER_ID_LABEL = "worker_id"
ERROR_TYPE_LABEL = "error_type"

RESERVED_LABELS = frozenset(
    {NAMESPACE_LABEL, COMPONENT_LABEL, ENDPOINT_LABEL, WORKER_ID_LABEL, ERROR_TYPE_LABEL, "le"}
)
"""Label names an application may not give; Dynamo refuses its automatic ones too."""

# --- Dynamo, per endpoint ---------------------------------------------------------------

REQUESTS = Series(
    "dynamo_component_requests_total",
    "Total number of requests processed by work handler",
)
REQUEST_DURATION = Series(
    "dynamo_component_request_duration_seconds",
    "Time spent processing requests by work handler",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600),
)
INFLIGHT_REQUESTS = Series(
    "dynamo_component_inflight_requests",
    "Number of requests currently being processed by work handler",
)
REQUEST_BYTES = Series(
    "dynamo_component_request_bytes_total",
    "Total number of bytes received in requests by work handler",
)
RESPONSE_BYTES = Series(
    "dynamo_component_response_bytes_total",
    "Total number of bytes sent in responses by work handler",
)
ERRORS = Series(
    "dynamo_component_errors_total",
    "Total number of errors in work handler processing",
)
CANCELLATION = Series(
    "dynamo_component_cancellation_total",
    "Total number of requests cancelled by work handler",
)

# --- Dynamo, per process ----------------------------------------------------------------

UPTIME = Series(
    "dynamo_component_uptime_seconds",
    "Total uptime of the DistributedRuntime in seconds",
)
NETWORK_TRANSIT = Series(
    "dynamo_work_handler_network_transit_seconds",
    "Frontend-to-backend network transit time (cross-process wall-clock, seconds)",
    (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1),
)
TIME_TO_FIRST_RESPONSE = Series(
    "dynamo_work_handler_time_to_first_response_seconds",
    "Backend processing time from handle_payload entry to prologue sent (seconds)",
    (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)

# These belong to Dynamo's TCP request plane: over NATS they exist and stay 0.
TCP_PLANE_GAUGES = (
    Series(
        "dynamo_work_handler_queue_depth",
        "Current items in the bounded work queue awaiting dispatcher pickup",
    ),
    Series(
        "dynamo_work_handler_queue_capacity",
        "Configured capacity of the bounded work queue",
    ),
    Series(
        "dynamo_work_handler_pool_active_tasks",
        "Current number of active worker-pool tasks (permits in use)",
    ),
    Series(
        "dynamo_work_handler_pool_capacity",
        "Configured worker-pool capacity (total permits)",
    ),
    Series(
        "dynamo_engine_request",
        "Current number of requests being handled by the engine (--engine-request-limit)",
    ),
    Series(
        "dynamo_request_queue",
        "Current number of requests queued in Dynamo not yet in the engine "
        "(--dynamo-request-queue-limit)",
    ),
)
TCP_PLANE_COUNTERS = (
    Series(
        "dynamo_work_handler_enqueue_rejected_total",
        "Times enqueuing work failed because the dispatcher channel was closed",
    ),
    Series(
        "dynamo_rejection_request_total",
        "Requests rejected because the worker is at capacity "
        "(engine in-flight limit and Dynamo queue both full)",
    ),
)
TCP_PLANE_HISTOGRAMS = (
    Series(
        "dynamo_work_handler_permit_wait_seconds",
        "Time spent waiting for a worker-pool permit (seconds)",
        (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60),
    ),
)

# --- dialback's own ---------------------------------------------------------------------

OUTCOMES = Series(
    "dialback_outcomes_total",
    "Requests ended, by outcome; exactly one per request",
)
DELIVERIES = Series(
    "dialback_deliveries_total",
    "Deliveries ended, by how; a request can take several",
)
PUBLISH_FAILURES = Series(
    "dialback_publish_failures_total",
    "Response streams that could not be written to the end, by stage and cause",
)
DEAD_LETTERS = Series(
    "dialback_dead_letters_total",
    "Requests moved to the dead-letter stream, by outcome",
)
ACK_UNCONFIRMED = Series(
    "dialback_ack_unconfirmed_total",
    "Acknowledgements the server did not confirm in time",
)
HEARTBEAT_LATE = Series(
    "dialback_heartbeat_late_total",
    "In-progress heartbeats sent later than planned",
)
PULL_ERRORS = Series(
    "dialback_pull_errors_total",
    "Pulls from the work queue that failed, by kind",
)
DIAL_RETRIES = Series(
    "dialback_dial_retries_total",
    "Dials to a requester repeated within one delivery",
)
STREAMS_RESUMED = Series(
    "dialback_streams_resumed_total",
    "Response streams that this worker went on with after another one",
)
REPLAYED_ITEMS = Series(
    "dialback_replayed_items_total",
    "Items an engine yielded again and the requester had already; not written",
)
HANDOVER = Series(
    "dialback_handover_seconds",
    "From the last item of the earlier worker to the first of this one, on resumed streams",
    (0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
QUEUE_WAIT = Series(
    "dialback_queue_wait_seconds",
    "Time from a request's publication to its delivery (cross-process wall-clock, seconds)",
    (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
)
SLOTS = Series(
    "dialback_slots",
    "Request slots of this worker, by state",
)
DRAIN_STATE = Series(
    "dialback_drain_state",
    "1 while the worker drains, else 0",
)
LAST_PULL_SUCCESS = Series(
    "dialback_last_pull_success_timestamp_seconds",
    "Unix time of the last pull the server answered; 0 before the first",
)
RECONNECTS = Series(
    "dialback_reconnects_total",
    "Times the NATS connection was re-established",
)
BUILD_INFO = Series(
    "dialback_build_info",
    "Always 1; the label says which version runs",
)
