"""The HTTP side server: ``/metrics`` and the probes, in the shape of Dynamo's status server.

Mirrors ``lib/runtime/src/system_status_server.rs`` of Dynamo 1.6.1: routes, bodies, content
types. Deliberate differences: ``/live`` does not fail while a worker merely is not ready (an
orchestrator would kill it for draining), and ``/ready`` says why not. Reads its state through a
callable; decides nothing itself.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry

from dialback.metrics.text_format import render

__all__ = ["Health", "StatusServer", "render"]

_OK = 200
_UNAVAILABLE = 503
_SHUTDOWN_TIMEOUT = 1.0  # seconds; no handler waits for anything
_NANOSECONDS = 1_000_000_000

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the probes report at one moment.

    Attributes:
        ready: The worker takes requests.
        live: The process is sound; when false it should be restarted.
        endpoint: Name of the served endpoint.
        uptime: Time since start, in seconds.
        reasons: Why the worker is not ready.
    """

    ready: bool
    live: bool = True
    endpoint: str
    uptime: float
    reasons: tuple[str, ...] = ()


class StatusServer:
    """Serves one registry and one health callable over HTTP."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str,
        port: int,
        health: Callable[[], Health],
        health_path: str = "/health",
        live_path: str = "/live",
    ) -> None:
        """Prepare the server; nothing is bound before :meth:`start`.

        Args:
            registry: What ``/metrics`` shows.
            host: Address or name to bind.
            port: Port to bind; 0 takes any free one.
            health: Called for each probe, in the event loop; must not block.
            health_path: Path of Dynamo's health route.
            live_path: Path of Dynamo's liveness route.
        """
        self._registry = registry
        self._host = host
        self._port = port
        self._health = health
        self._routes = [
            web.get("/metrics", self._serve_metrics),
            web.get("/ready", self._serve_ready),
            web.get(health_path, self._serve_health),
            web.get(live_path, self._serve_live),
        ]
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Bind and serve.

        Returns:
            The bound port.

        Raises:
            OSError: The address cannot be bound, for instance because the port is taken.
            RuntimeError: The server runs already, or two routes have the same path.
        """
        if self._runner is not None:
            raise RuntimeError("the status server runs already")
        app = web.Application(middlewares=[_unknown_route_as_dynamo])
        app.add_routes(self._routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and all connections; harmless when not started."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        return _text(_OK, render(self._registry).decode())

    async def _serve_health(self, _request: web.Request) -> web.Response:
        health = self._health()
        return _dynamo_status(health, good=health.ready)

    async def _serve_live(self, _request: web.Request) -> web.Response:
        health = self._health()
        return _dynamo_status(health, good=health.live)

    async def _serve_ready(self, _request: web.Request) -> web.Response:
        health = self._health()
        body = {"ready": health.ready, "reasons": health.reasons}
        return web.json_response(body, status=_status_code(good=health.ready))


@web.middleware
async def _unknown_route_as_dynamo(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return _text(404, "Route not found")


def _dynamo_status(health: Health, *, good: bool) -> web.Response:
    """Answer as Dynamo does: JSON without spaces, labelled as plain text."""
    seconds, nanoseconds = divmod(round(health.uptime * _NANOSECONDS), _NANOSECONDS)
    body = {
        "status": _word(ready=good),
        "uptime": {"secs": seconds, "nanos": nanoseconds},
        "endpoints": {health.endpoint: _word(ready=health.ready)},
    }
    return _text(_status_code(good=good), json.dumps(body, separators=(",", ":")))


def _word(*, ready: bool) -> str:
    return "ready" if ready else "notready"


def _status_code(*, good: bool) -> int:
    return _OK if good else _UNAVAILABLE


def _text(status: int, body: str) -> web.Response:
    return web.Response(status=status, text=body, content_type="text/plain", charset="utf-8")
