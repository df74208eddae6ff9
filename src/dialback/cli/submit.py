"""``dialback submit``: send one request and print its items as they come."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from dialback.cli.logs import set_up_logs
from dialback.cli.options import ServerOption, choices, parse_choice
from dialback.cli.output import error_console, print_json
from dialback.cli.run import ExitCode, run
from dialback.errors import ConfigError, QueueFullError
from dialback.queue.topology import Endpoint, Lane
from dialback.requester import DEFAULT_DEADLINE, DEFAULT_TIMEOUT, Requester
from dialback.settings import Settings
from dialback.stream import ResponseStream
from dialback.transport.messages import PayloadCodec
from dialback.transport.response_stream import EndState


def submit(
    endpoint: Annotated[
        str, typer.Argument(metavar="ENDPOINT", help="namespace.component.endpoint")
    ],
    request: Annotated[
        str,
        typer.Argument(metavar="JSON|@FILE|-", help="The request; @FILE reads a file, - stdin."),
    ],
    *,
    server: ServerOption = None,
    timeout: Annotated[float, typer.Option(help="Seconds until the first item.")] = DEFAULT_TIMEOUT,
    deadline: Annotated[
        float, typer.Option(help="Seconds for the whole stream.")
    ] = DEFAULT_DEADLINE,
    lane: Annotated[
        Lane,
        typer.Option(parser=parse_choice(Lane), metavar=choices(Lane), help="Lane of the queue."),
    ] = Lane.NORMAL,
    codec: Annotated[
        PayloadCodec | None,
        typer.Option(
            parser=parse_choice(PayloadCodec),
            metavar=choices(PayloadCodec),
            help="Codec on the wire.  [default: json]",
        ),
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--id", help="Request id.  [default: a new UUID]")
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Ask to stop after N items.")
    ] = None,
) -> None:
    """Send one request and print its items, one JSON value on a line.

    Ctrl-C asks the engine to stop; what it has produced still arrives. A second Ctrl-C ends
    the stream at once. Exit codes: 0 complete, 1 the engine failed or the stream broke,
    3 no such endpoint, 4 refused (the queue is full, or has the --id already), 69 no
    nats-server, 75 no item in time, 77 NATS refuses the user, 130 stopped.

    \b
    Examples:
      dialback submit demo.backend.generate '{"n": 3}'
      dialback submit demo.backend.generate @request.json --timeout 10
      echo '{"n": 3}' | dialback submit demo.backend.generate - | jq .i
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    Endpoint.parse(endpoint)  # a typing mistake needs no server to be found
    settings = Settings.load(server=server)
    set_up_logs("WARNING", settings.log_format)
    options: dict[str, Any] = {
        "timeout": timeout,
        "deadline": deadline,
        "lane": lane,
        "codec": codec,
        "request_id": request_id,
    }
    code = run(_submit(settings, endpoint, read_request(request), options, stop_after))
    raise typer.Exit(code)


def read_request(argument: str) -> Any:
    """Return the value of ``JSON``, ``@FILE`` or ``-``.

    Raises:
        ConfigError: If it cannot be read or is no JSON.
    """
    try:
        if argument == "-":
            text = sys.stdin.buffer.read()
        elif argument.startswith("@"):
            text = Path(argument[1:]).read_bytes()
        else:
            text = argument.encode()
        return orjson.loads(text)
    except OSError as error:
        raise ConfigError(f"request {argument}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"request is not JSON: {error}; quote it: '{{\"n\": 3}}'") from error


async def _submit(
    settings: Settings, endpoint: str, request: Any, options: dict[str, Any], stop_after: int | None
) -> ExitCode:
    try:
        async with Requester(settings) as requester:
            stream = requester.generate(endpoint, request, **options)
            async with stream:
                interrupts = _stop_on_interrupt(stream)
                async for item in stream:
                    print_json(item)
                    if stop_after is not None and stream.items >= stop_after:
                        await stream.stop()
    except QueueFullError as error:
        raise QueueFullError(
            f"the queue of {endpoint} takes no more requests: {error}. Start workers for it, or"
            f" look with: dialback queue info {endpoint}"
        ) from error
    if stream.end is EndState.COMPLETE and not interrupts:
        return ExitCode.DONE
    error_console.print(f"stopped after {stream.items} items")
    return ExitCode.INTERRUPTED


def _stop_on_interrupt(stream: ResponseStream) -> list[int]:
    """Let the first Ctrl-C stop and the second kill; return the list of those that came."""
    loop = asyncio.get_running_loop()
    received: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    def interrupt() -> None:
        received.append(signal.SIGINT)
        first = len(received) == 1
        if first:
            error_console.print("asked to stop; Ctrl-C again ends the stream at once")
        task = loop.create_task(stream.stop() if first else stream.kill())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    return received
