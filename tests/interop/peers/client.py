"""An unmodified Dynamo client: sends what it is told to and reports what its caller sees."""

import asyncio
import gc
import importlib
from typing import Any

from interop.peers.lines import name_of, serve_commands, tell

dynamo: Any = importlib.import_module("dynamo.runtime")  # only there in a peer's environment

_NOBODY = ("No workers available for endpoint", "not found for endpoint")
_TRIES = 1000


class Client:
    """One runtime and one client of one endpoint; a request names the instance it is for.

    A client keeps two inotify instances until its process ends, and a user has few of them
    (128 by default): one for each test would be too many.
    """

    def __init__(self) -> None:
        self._runtime = dynamo.DistributedRuntime(asyncio.get_running_loop(), "file", "nats")
        self._client: asyncio.Task[Any] | None = None

    async def carry_out(self, command: dict[str, Any]) -> None:
        """Send one request; report its start, the item to report, and its end."""
        number = command["number"]
        if self._client is None:
            self._client = asyncio.create_task(self._discover(command["endpoint"]))
        client = await self._client
        context = dynamo.Context(command["request_id"], command.get("metadata") or None)
        items: list[Any] = []
        try:
            stream = await _published(client, command, context)
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

    async def _discover(self, endpoint: str) -> Any:
        client = await self._runtime.endpoint(endpoint).client()
        await client.wait_for_instances()
        return client


async def _published(client: Any, command: dict[str, Any], context: Any) -> Any:
    """Send a request, again while the client has not heard of the instance in full.

    Its list and its router learn of an instance one after the other, and the one that has not
    says that there is none; nothing was published then.
    """
    instance = command["instance"]
    for _ in range(_TRIES):
        if instance in client.instance_ids():
            try:
                return await client.direct(command["request"], instance, context=context)
            except Exception as error:
                if not any(words in str(error) for words in _NOBODY):
                    raise
        await asyncio.sleep(0.02)
    raise RuntimeError(f"instance {instance} is not there, only {client.instance_ids()}")


async def main() -> None:
    """Serve until stdin ends."""
    await serve_commands(Client().carry_out)


asyncio.run(main())
