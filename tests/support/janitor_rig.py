"""A janitor under a test's control, requests with deadlines, and what their callers hear."""

import time
from collections.abc import Mapping
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from dialback.janitor import Janitor
from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import DeliveryEnd, Outcome
from dialback.queue.client import QueueClient
from dialback.queue.janitor import JanitorSettings
from dialback.queue.topology import Endpoint
from dialback.transport.address import CallHomePolicy
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.request_headers import DEADLINE_HEADER, START_BY_HEADER
from support.frames import request_payload, tcp_info
from support.ingress_rig import FINAL, PATIENT
from support.scripted_requester import ScriptedRequester

HOUR = 3600 * 1_000_000_000


def by(offset_ns: int, *, name: str = START_BY_HEADER) -> dict[str, str]:
    """A deadline header, so many nanoseconds from now."""
    return {name: str(time.time_ns() + offset_ns)}


PASSED = -HOUR
DEADLINE = DEADLINE_HEADER


def request(requester: ScriptedRequester, request_id: str = "req-1") -> bytes:
    """A request that dials the requester back."""
    info = tcp_info(requester.address, context=request_id)
    return request_payload(requester.address, {"n": 1}, id=request_id, info=info)


class JanitorRig:
    """One janitor with a registry of its own."""

    def __init__(
        self, client: QueueClient, endpoint: Endpoint, *, name: str = "j-1", **settings: Any
    ) -> None:
        self.registry = CollectorRegistry()
        self.janitor = Janitor(
            client,
            endpoint,
            dialer=Dialer(CallHomePolicy(), DialSettings(attempts=1, linger=PATIENT)),
            metrics=ServiceMetrics(
                self.registry, outcomes=Outcome, delivery_ends=DeliveryEnd, version="0", slots=0
            ),
            name=name,
            settings=JanitorSettings(**settings),
        )

    def outcomes(self) -> Mapping[str, int]:
        """The outcomes that were counted."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "dialback_outcomes_total" and sample.value
        }


async def heard(requester: ScriptedRequester) -> dict[str, Any]:
    """The error item of the next call-home connection, which has to end with a final."""
    connection = await requester.connection()
    frames = await connection.frames()
    await connection.close()
    assert FINAL in connection.received
    bodies = [orjson.loads(frame.data) for frame in frames if frame.data]
    (error,) = [body["data"]["error"] for body in bodies if "data" in body]
    return dict(error)
