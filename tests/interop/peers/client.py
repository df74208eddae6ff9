"""An unmodified Dynamo client: sends what it is told to and reports what its caller sees."""

import asyncio
import gc
import importlib
from typing import Any

from interop.peers.lines import name_of, serve_commands, tell

dynamo: Any = importlib.import_module("dynamo.runtime")  # only there in a peer's environment

_NOBODY = "No workers available for endpoint"
_TRIES = 40


class Client:
    """One runtime, a client for each endpoint."""

    def __init__(self) -> None:
        self._runtime = dynamo.DistributedRuntime(asyncio.get_running_loop(), "file", "nats")
        self._clients: dict[str, asyncio.Task[Any]] = {}

    async def carry_out(self, command: dict[str, Any]) -> None:
        """Send one request; report its start, the item to report, and its end."""
        number = command["number"]
        client = await self._client(command["endpoint"])
        context = dynamo.Context(command["request_id"], command.get("metadata") or None)
        items: list[Any] = []
        try:
            stream = await _published(client, command["request"], context)
            tell(number, "started")
            if command.get("stop_at") == 0:
                context.stop_generating()
            async for item in stream:
                items.append(item.data())
                if len(items) == command.get("tell_at"):
                    tell(number, "reached")
                if len(items) == command.get("stop_at"):
                    context.stop_generating()
                if len(items) == command.get("drop_at"):
                    break
        except Exception as error:
            tell(number, "ended", items=items, error=name_of(error))
            return
        del stream
        gc.collect()  # a stream that nobody holds is dropped now
        tell(number, "ended", items=items, error=None)

    async def _client(self, endpoint: str) -> Any:
        if endpoint not in self._clients:
            self._clients[endpoint] = asyncio.create_task(self._discover(endpoint))
        return await self._clients[endpoint]

    async def _discover(self, endpoint: str) -> Any:
        client = await self._runtime.endpoint(endpoint).client()
        await client.wait_for_instances()
        return client


async def _published(client: Any, request: Any, context: Any) -> Any:
    """Send a request, again while the client's router has not heard of the instance yet.

    It may say so for a moment after ``wait_for_instances()``; nothing was published then.
    """
    for _ in range(_TRIES):
        try:
            return await client.generate(request, context=context)
        except Exception as error:
            if _NOBODY not in str(error):
                raise
        await asyncio.sleep(0.05)
    return await client.generate(request, context=context)


async def main() -> None:
    """Serve until stdin ends."""
    await serve_commands(Client().carry_out)


asyncio.run(main())
