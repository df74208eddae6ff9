"""An ingress with real metrics, a real dialer, and the exact bytes its requester should see."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from dialback.ingress.engine import Engine
from dialback.ingress.handler import Ingress
from dialback.ingress.request import Parse, parse_unary
from dialback.ingress.session import IngressSettings
from dialback.metrics.worker_metrics import WorkerMetrics
from dialback.outcomes import Delivery, DeliveryEnd, Ending, Finished, Outcome, Revocation
from dialback.transport.address import CallHomePolicy
from dialback.transport.dial import Dialer, DialSettings
from dialback.transport.two_part import TwoPartMessage, encode
from support.frames import request_payload
from support.scripted_requester import ScriptedRequester

# Protocol sections 6.1, 6.2, 6.5 and 6.6, byte for byte.
HANDSHAKE = bytes.fromhex(
    "000000000000004b00000000000000000000000000000000"
    "7b227375626a656374223a2236663164316132652d336234632d346435652d386636302d373138323933613462"
    "356336222c2273747265616d5f74797065223a22726573706f6e7365227d"
)
ACCEPTED = bytes.fromhex(
    "000000000000000e000000000000000000000000000000007b226572726f72223a6e756c6c7d"
)
FINAL = bytes.fromhex(
    "0000000000000000000000000000001700000000000000007b22636f6d706c6574655f66696e616c223a747275657d"
)
MSGPACK_FINAL = bytes.fromhex(
    "00000000000000000000000000000011000000000000000081ae636f6d706c6574655f66696e616cc3"
)
SENTINEL = bytes.fromhex("000000000000000a000000000000000000000000000000002273656e74696e656c22")
FINAL_BYTES = 0x17
PATIENT = 1000.0
"""Seconds that no test waits: what ends a test's wait is the event it is about."""


def item(value: Any) -> bytes:
    """An item's frame in JSON."""
    return encode(b"", b'{"data":{"data":' + orjson.dumps(value) + b'},"complete_final":false}')


def item_bytes(*values: Any) -> int:
    """Bytes of the items' bodies, as ``response_bytes`` counts them."""
    return sum(len(item(value)) - 24 for value in values)


def error_item(name: str, kind: str, reason: str, message: str) -> bytes:
    """An error item's frame in JSON (protocol sections 6.4 and 10.4)."""
    error = {
        "error_type": {"Backend": name},
        "class": kind,
        "reason": reason,
        "message": message,
        "diagnostic": message,
    }
    return encode(
        b"",
        b'{"data":{"event":"error","error":' + orjson.dumps(error) + b'},"complete_final":false}',
    )


def invalid_argument(message: str) -> bytes:
    """The error item that answers a message which cannot be served."""
    return error_item("InvalidArgument", "InvalidRequest", "backend.invalid_argument", message)


def error_message(frames: list[TwoPartMessage]) -> str:
    """The message of the one error item among the frames."""
    bodies = [orjson.loads(frame.data) for frame in frames if frame.data]
    (message,) = [body["data"]["error"]["message"] for body in bodies if "data" in body]
    return str(message)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What moved in the metrics; zeros are left out of the maps."""

    requests: int = 1
    inflight: int = 0
    durations: int = 1
    first_responses: int = 1
    errors: Mapping[str, int] = field(default_factory=dict[str, int])
    cancellations: int = 0
    publish_failures: Mapping[tuple[str, str], int] = field(
        default_factory=dict[tuple[str, str], int]
    )
    response_bytes: int = 0
    healthy: int = 0


class IngressRig:
    """One ingress and everything round it."""

    def __init__(
        self,
        engine: object,
        *,
        dial: DialSettings | None = None,
        dialer_type: type[Dialer] = Dialer,
        stop_grace: float = PATIENT,
        refusal_wait: float = PATIENT,
        max_crashes: int = 3,
        answer_timeout: float = PATIENT,
        parse: Parse = parse_unary,
        on_retry: Callable[[], None] = lambda: None,
        on_healthy: Callable[[], None] = lambda: None,
        now_ns: Callable[[], int] = lambda: 1_000_000_000_000_000_000,
    ) -> None:
        self.registry = CollectorRegistry()
        metrics = WorkerMetrics.create(
            self.registry,
            namespace="test",
            component="backend",
            endpoint="generate",
            worker_id="1",
            outcomes=Outcome,
            delivery_ends=DeliveryEnd,
            version="0",
            slots=1,
        )
        self.healthy = 0
        self._on_healthy = on_healthy
        self.ingress = Ingress(
            engine if isinstance(engine, Engine) else Engine(engine),
            dialer_type(
                CallHomePolicy(),
                dial or DialSettings(attempts=1, linger=PATIENT),
                on_retry=on_retry,
            ),
            metrics=metrics.work_handler,
            service=metrics.service,
            settings=IngressSettings(
                stop_grace=stop_grace,
                refusal_wait=refusal_wait,
                max_crashes=max_crashes,
                answer_timeout=answer_timeout,
            ),
            parse=parse,
            on_healthy=self._healthy,
            now_ns=now_ns,
        )

    def _healthy(self) -> None:
        self.healthy += 1
        self._on_healthy()

    def start(
        self,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        number: int = 1,
        redelivered: bool = False,
        crashes: int = 0,
        revocation: Revocation | None = None,
    ) -> "asyncio.Task[Ending]":
        """Serve one delivery in a task."""
        delivery = Delivery(
            payload=payload,
            headers=headers or {},
            subject="dialback.test.backend.generate.jobs.normal.req-1",
            stream="JOBS_test",
            sequence=7,
            number=number,
            redelivered=redelivered or number > 1,
            crashes=crashes,
            published_ns=1_700_000_000_000_000_000,
            revocation=revocation or Revocation(),
        )
        return asyncio.create_task(_ending(self.ingress, delivery), name="serve")

    def serve(self, requester: ScriptedRequester, value: Any = None) -> "asyncio.Task[Ending]":
        """Serve a good JSON request that dials ``requester``."""
        return self.start(request_payload(requester.address, value))

    def counts(self) -> Counts:
        """What the metrics say."""
        return Counts(
            requests=self._sum("dynamo_component_requests_total"),
            inflight=self._sum("dynamo_component_inflight_requests"),
            durations=self._sum("dynamo_component_request_duration_seconds_count"),
            first_responses=self._sum("dynamo_work_handler_time_to_first_response_seconds_count"),
            errors=self._by_label("dynamo_component_errors_total", "error_type"),
            cancellations=self._sum("dynamo_component_cancellation_total"),
            publish_failures=self._failures(),
            response_bytes=self._sum("dynamo_component_response_bytes_total"),
            healthy=self.healthy,
        )

    def sample(self, name: str) -> int:
        """The value of a series without regard to its labels."""
        return self._sum(name)

    def _samples(self, name: str) -> list[tuple[dict[str, str], int]]:
        return [
            (sample.labels, int(sample.value))
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        ]

    def _sum(self, name: str) -> int:
        return sum(value for _, value in self._samples(name))

    def _by_label(self, name: str, label: str) -> dict[str, int]:
        return {labels[label]: value for labels, value in self._samples(name) if value}

    def _failures(self) -> dict[tuple[str, str], int]:
        return {
            (labels["stage"], labels["cause"]): value
            for labels, value in self._samples("dialback_publish_failures_total")
            if value
        }


async def _ending(ingress: Ingress, delivery: Delivery) -> Ending:
    return await ingress.handle(delivery)


def finished(ending: Ending) -> Finished:
    """The ending, which has to be that of a request."""
    assert isinstance(ending, Finished), ending
    return ending
