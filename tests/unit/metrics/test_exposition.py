from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from aiohttp import ClientConnectionError, ClientSession
from prometheus_client import CollectorRegistry, Gauge

from dialback.metrics.exposition import Health, StatusServer, render

LOOPBACK = "127.0.0.1"
READY = Health(ready=True, endpoint="generate", uptime=4.335170913)
DRAINING = replace(READY, ready=False, reasons=("draining", "no engine"))
DEAD = replace(DRAINING, live=False)
TEXT = "text/plain; charset=utf-8"

Answer = tuple[int, str, str]


class Worker:
    """What a test can change, and the server that shows it."""

    def __init__(self) -> None:
        self.health = READY
        self.registry = CollectorRegistry()
        self.server = self.make_server()
        self.port = 0

    def make_server(self, port: int = 0, **paths: str) -> StatusServer:
        return StatusServer(
            self.registry, host=LOOPBACK, port=port, health=lambda: self.health, **paths
        )


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    worker.port = await worker.server.start()
    yield worker
    await worker.server.stop()


@pytest.fixture
async def client() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def _get(client: ClientSession, port: int, path: str) -> Answer:
    async with client.get(f"http://{LOOPBACK}:{port}{path}") as response:
        return response.status, response.headers["Content-Type"], await response.text()


def _body(status: str, endpoint: str) -> str:
    return (
        f'{{"status":"{status}","uptime":{{"secs":4,"nanos":335170913}},'
        f'"endpoints":{{"generate":"{endpoint}"}}}}'
    )


@pytest.mark.parametrize(
    ("health", "on_health", "on_live"),
    [
        (READY, (200, _body("ready", "ready")), (200, _body("ready", "ready"))),
        (DRAINING, (503, _body("notready", "notready")), (200, _body("ready", "notready"))),
        (DEAD, (503, _body("notready", "notready")), (503, _body("notready", "notready"))),
    ],
)
async def test_probes_have_dynamos_shape(
    worker: Worker,
    client: ClientSession,
    health: Health,
    on_health: tuple[int, str],
    on_live: tuple[int, str],
) -> None:
    worker.health = health
    for path, (status, body) in (("/health", on_health), ("/live", on_live)):
        assert await _get(client, worker.port, path) == (status, TEXT, body)


@pytest.mark.parametrize(
    ("health", "status", "body"),
    [
        (READY, 200, '{"ready": true, "reasons": []}'),
        (DRAINING, 503, '{"ready": false, "reasons": ["draining", "no engine"]}'),
    ],
)
async def test_ready_says_why_not(
    worker: Worker, client: ClientSession, health: Health, status: int, body: str
) -> None:
    worker.health = health
    answer = await _get(client, worker.port, "/ready")
    assert answer == (status, "application/json; charset=utf-8", body)


async def test_uptime_never_shows_a_whole_second_of_nanoseconds(
    worker: Worker, client: ClientSession
) -> None:
    worker.health = replace(READY, uptime=2.9999999999)
    _, _, body = await _get(client, worker.port, "/health")
    assert '"uptime":{"secs":3,"nanos":0}' in body


async def test_metrics_are_the_registry_now(worker: Worker, client: ClientSession) -> None:
    gauge = Gauge("x", "Größe", registry=worker.registry)
    for value in (1, 2):
        gauge.set(value)
        status, content_type, body = await _get(client, worker.port, "/metrics")
        assert (status, content_type) == (200, TEXT)
        assert body.encode() == render(worker.registry)
        assert body.endswith(f"\nx {value}\n")


@pytest.mark.parametrize("path", ["/", "/metadata", "/metrics/", "/v1/metadata"])
async def test_other_paths_are_not_found(worker: Worker, client: ClientSession, path: str) -> None:
    assert await _get(client, worker.port, path) == (404, TEXT, "Route not found")


@pytest.mark.parametrize("path", ["/metrics", "/health", "/live", "/ready"])
async def test_only_reading_is_allowed(worker: Worker, client: ClientSession, path: str) -> None:
    url = f"http://{LOOPBACK}:{worker.port}{path}"
    async with client.post(url) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
    async with client.head(url) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_probe_paths_are_configurable(worker: Worker, client: ClientSession) -> None:
    server = worker.make_server(health_path="/healthz", live_path="/livez")
    port = await server.start()
    try:
        assert (await _get(client, port, "/healthz"))[0] == 200
        assert (await _get(client, port, "/livez"))[0] == 200
        assert (await _get(client, port, "/health"))[0] == 404
    finally:
        await server.stop()


async def test_a_taken_port_is_an_os_error_and_can_be_tried_again(worker: Worker) -> None:
    second = worker.make_server(port=worker.port)
    with pytest.raises(OSError, match=str(worker.port)):
        await second.start()
    await worker.server.stop()
    assert await second.start() == worker.port
    await second.stop()


async def test_starting_twice_is_refused(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="already"):
        await worker.server.start()


async def test_stop_closes_the_port_and_may_be_repeated(
    worker: Worker, client: ClientSession
) -> None:
    await worker.server.stop()
    await worker.server.stop()
    with pytest.raises(ClientConnectionError):
        await _get(client, worker.port, "/live")


async def test_a_failing_health_check_fails_the_probe(client: ClientSession) -> None:
    def broken() -> Health:
        raise LookupError

    health: Callable[[], Health] = broken
    server = StatusServer(CollectorRegistry(), host=LOOPBACK, port=0, health=health)
    port = await server.start()
    try:
        assert (await _get(client, port, "/health"))[0] == 500
    finally:
        await server.stop()
