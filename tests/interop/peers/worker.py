"""An unmodified Dynamo worker: serves endpoints with the suite's engine, reports what it saw."""

import asyncio
import importlib
from typing import Any

from interop.peers import engine
from interop.peers.lines import serve_commands, tell

dynamo: Any = importlib.import_module("dynamo.runtime")  # only there in a peer's environment


async def main() -> None:
    """Serve each endpoint that is named, until stdin ends."""
    runtime = dynamo.DistributedRuntime(asyncio.get_running_loop(), "file", "nats")
    classes: Any = importlib.import_module("dynamo.llm.exceptions")
    engine.ERRORS.update({name: getattr(classes, name) for name in engine.DYNAMO_ERRORS})
    engine.observers.append(lambda request_id, what: tell(0, f"{what} {request_id}"))

    async def carry_out(command: dict[str, Any]) -> None:
        await runtime.endpoint(command["endpoint"]).serve_endpoint(engine.generate)

    await serve_commands(carry_out)


asyncio.run(main())
