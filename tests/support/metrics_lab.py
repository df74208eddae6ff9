"""Our worker in the part of the captured Dynamo worker, driven through the captured steps.

The engine's modes and the requests' shapes are those behind ``tests/vectors/metrics``; where
that one slept, this one waits for an event, so that every count is exact.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from dialback import Context, Settings, Worker, WorkerExit
from dialback.queue.client import QueueClient
from dialback.queue.connection import ServerAddress
from dialback.queue.embedded_server import EmbeddedServer
from dialback.queue.topology import Endpoint, Lane
from dialback.transport.two_part import decode, encode
from support.black_hole import NobodyListens
from support.captures import capture
from support.eventually import eventually
from support.frames import request_payload, tcp_info
from support.scripted_requester import KILL, STOP, CallHome, ScriptedRequester
from support.worker_process import parse_metrics

LAB = Endpoint("lab", "backend", "generate")
"""The captured worker's endpoint: with it only ``worker_id`` differs in the labels."""

_SLOW_ITEMS, _SLOW_PAUSE = 60, 18


class LabEngine:
    """What the captured worker's engine did, by the request's ``mode``."""

    def __init__(self) -> None:
        self.is_ready = True
        self.go_on = asyncio.Event()

    def ready(self) -> bool:
        return self.is_ready

    def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        if request["mode"] == "sync_raise":
            raise RuntimeError("lab: raised before returning a stream")
        return self._stream(request, context)

    async def _stream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        mode, n = request["mode"], request.get("n", 0)
        if mode == "raise_before":
            raise ValueError("lab: raised before first yield")
        for i in range(n):
            yield {"i": i, "text": f"item-{i}"}
            if mode == "raise_mid" and i + 1 == request["after"]:
                raise RuntimeError("lab: raised mid-stream")
            if mode in ("slow", "until_lost") and i + 1 == request["after"]:
                await self.go_on.wait()
                self.go_on.clear()
        if mode in ("slow_obey", "slow_ignore"):
            await context.async_killed_or_stopped()
        if mode == "slow_ignore":
            yield {"i": n, "text": f"item-{n}"}
        while mode == "until_lost":
            yield {"i": n, "text": f"item-{n}"}
            await asyncio.sleep(0)
        if mode in ("slow_ignore", "hold"):
            await asyncio.Event().wait()


@dataclass(slots=True)
class Lab:
    """A running worker, its queue and a requester.

    Attributes:
        sent: Requests sent, and their bytes.
        running: Requests that are left running.
        held: The connection of a request that is left running.
    """

    worker: Worker
    engine: LabEngine
    requester: ScriptedRequester
    client: QueueClient
    sent: int = 0
    sent_bytes: int = 0
    running: int = 0
    held: list[CallHome] = field(default_factory=list[CallHome])

    async def send(self, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Put one request into the queue."""
        self.sent += 1
        self.sent_bytes += len(payload)
        subject = LAB.request_subject(Lane.NORMAL, f"request-{self.sent}")
        await self.client.publisher.publish(subject, payload, headers or {})

    async def ask(self, mode: str, **arguments: object) -> CallHome:
        """Send a request of the captured shape; return its connection."""
        await self.send(self.payload({"mode": mode} | arguments))
        return await self.requester.connection()

    def payload(self, value: object = None, **changes: Any) -> bytes:
        """A request that dials this lab."""
        return request_payload(self.requester.address, value, **changes)

    async def refused(self, payload: bytes) -> None:
        """Send a request that is not served, and read its answer."""
        await self.send(payload)
        await read(await self.requester.connection())

    async def get(self, path: str) -> tuple[int, str]:
        """Get a path of the status server."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.worker.status_port}{path}") as response,
        ):
            return response.status, await response.text()

    async def exposition(self) -> str:
        """``/metrics``, once every request sent has ended or is meant to run."""

        def settled(text: str) -> bool:
            found = parse_metrics(text)
            ended = found["dynamo_component_request_duration_seconds_count"]
            running = found["dynamo_component_inflight_requests"]
            return (ended, running) == (self.sent - self.running, self.running)

        return await eventually(self._scrape, settled)

    async def _scrape(self) -> str:
        return (await self.get("/metrics"))[1]


async def read(connection: CallHome, *, items: int | None = None) -> None:
    """Read so many items after handshake and prologue, or all up to the end, then close."""
    if items is None:
        await connection.frames()
        await connection.close()
        return
    for _ in range(2 + items):
        assert await connection.frame() is not None


@asynccontextmanager
async def lab() -> AsyncGenerator[Lab]:
    """Run a nats-server, a worker and a requester."""
    async with EmbeddedServer() as server, ScriptedRequester() as requester:
        settings = Settings.load(server=server.url, stop_grace=0.2, dial_attempts=2)
        engine = LabEngine()
        worker = Worker(engine, endpoint=str(LAB), settings=settings)
        running = asyncio.create_task(worker.run(signals=False), name="worker")
        client = await QueueClient.open(ServerAddress(url=server.url), name="lab", role="operator")
        await eventually(client.api.stream_names, lambda names: LAB.dead_stream in names)
        yield Lab(worker, engine, requester, client)
        worker.stop()
        assert await running is WorkerExit.CLEAN
        await client.close()


# --- the steps of tests/vectors/metrics/1.6.1-deltas.json ---------------------------------


async def _start(_: Lab) -> None:
    pass


async def _three_normal(lab: Lab) -> None:
    for _ in range(3):
        await read(await lab.ask("count", n=5))


async def _one_from_real_client(lab: Lab) -> None:
    """The captured bytes of Dynamo's client, msgpack; only the port is this lab's."""
    message = decode(capture("1.6.1", "normal").payload)
    captured = orjson.loads(orjson.loads(message.header)["connection_info"]["info"])["address"]
    header = message.header.replace(captured.encode(), lab.requester.address.encode())
    await lab.send(encode(header, message.data), {"x-frontend-send-ts-ns": "1795443059047664442"})
    await read(await lab.requester.connection())


async def _send_time_in_control(lab: Lab) -> None:
    now = time.time_ns()
    await lab.send(lab.payload({"mode": "count", "n": 5}, frontend_send_ts_ns=now))
    await read(await lab.requester.connection())


async def _one_in_flight(lab: Lab) -> None:
    connection = await lab.ask("slow", n=_SLOW_ITEMS, after=_SLOW_PAUSE)
    await read(connection, items=_SLOW_PAUSE)
    lab.running = 1
    lab.held.append(connection)


async def _slow_finished(lab: Lab) -> None:
    lab.engine.go_on.set()
    lab.running = 0
    await read(lab.held.pop())


async def _control_not_json(lab: Lab) -> None:
    await lab.send(encode(b"{nope", b"{}"))


async def _unknown_codec(lab: Lab) -> None:
    await lab.refused(lab.payload({"mode": "count", "n": 5}, payload_codec="cbor"))


async def _body_not_json(lab: Lab) -> None:
    await lab.refused(lab.payload(body=b"{nope"))


async def _data_only(lab: Lab) -> None:
    await lab.send(encode(b"", b"{}"))


async def _header_only(lab: Lab) -> None:
    await lab.refused(lab.payload(body=b""))


async def _short_payload(lab: Lab) -> None:
    await lab.send(b"0123456789")


async def _refused(lab: Lab) -> None:
    with NobodyListens() as nobody:
        await lab.send(request_payload(nobody.address, {"mode": "count", "n": 5}))
        await lab.exposition()


async def _context_mismatch(lab: Lab) -> None:
    info = tcp_info(lab.requester.address, context="another")
    await lab.refused(lab.payload({"mode": "count", "n": 5}, info=info))


async def _sync_raise(lab: Lab) -> None:
    await read(await lab.ask("sync_raise"))


async def _raise_before(lab: Lab) -> None:
    await read(await lab.ask("raise_before"))


async def _raise_mid(lab: Lab) -> None:
    await read(await lab.ask("raise_mid", n=5, after=2))


async def _cancelled(lab: Lab, mode: str, control: bytes) -> None:
    connection = await lab.ask(mode, n=3)
    await read(connection, items=3)
    await connection.send(control)
    await read(connection)


async def _peer_reset(lab: Lab) -> None:
    connection = await lab.ask("hold", n=6)
    await read(connection, items=6)
    connection.reset()


# --- steps that were not captured; Dynamo's side is protocol 12.2 and 12.3 -----------------


async def _transport_unknown(lab: Lab) -> None:
    info = orjson.dumps(tcp_info(lab.requester.address)).decode()
    named = {"transport": "quic", "info": info}
    await lab.refused(lab.payload({"mode": "count", "n": 5}, connection_info=named))


async def _full_close(lab: Lab) -> None:
    connection = await lab.ask("until_lost", n=3, after=3)
    await read(connection, items=3)
    await connection.close()
    lab.engine.go_on.set()


async def _half_close(lab: Lab) -> None:
    connection = await lab.ask("slow", n=6, after=3)
    await read(connection, items=3)
    connection.half_close()
    lab.engine.go_on.set()
    await read(connection)


STEPS: dict[str, Callable[[Lab], Awaitable[None]]] = {
    "start": _start,
    "three-normal": _three_normal,
    "one-from-real-client": _one_from_real_client,
    "frontend-send-ts-ns-in-control": _send_time_in_control,
    "one-in-flight": _one_in_flight,
    "slow-finished": _slow_finished,
    "deserialization-control-not-json": _control_not_json,
    "control-unknown-codec": _unknown_codec,
    "body-not-json": _body_not_json,
    "invalid-message-data-only": _data_only,
    "invalid-message-header-only": _header_only,
    "codec-short-payload": _short_payload,
    "response-stream-refused": _refused,
    "response-stream-context-mismatch": _context_mismatch,
    "generate-sync-raise": _sync_raise,
    "item-error-raise-before": _raise_before,
    "item-error-raise-mid": _raise_mid,
    "cancel-stop": lambda lab: _cancelled(lab, "slow_obey", STOP),
    "cancel-stop-worker-ignores": lambda lab: _cancelled(lab, "slow_ignore", STOP),
    "cancel-kill": lambda lab: _cancelled(lab, "slow_obey", KILL),
    "publish-response-peer-reset": _peer_reset,
    "transport-unknown": _transport_unknown,
    "full-close": _full_close,
    "half-close": _half_close,
}
