"""``dialback janitor``: answer for requests that nobody serves."""

from typing import Annotated

import typer

from dialback.cli.logs import set_up_logs
from dialback.cli.options import ServerOption
from dialback.cli.run import run
from dialback.errors import ConfigError
from dialback.janitor_service import JanitorService
from dialback.queue.topology import Endpoint
from dialback.settings import Settings


def janitor(
    endpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="ENDPOINT", help="namespace.component.endpoint", show_default=False),
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="All queues, new ones too.", show_default=False)
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Make one pass and end.", show_default=False)
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds between two passes.  [env: DIALBACK_JANITOR_INTERVAL; default: 10]",
        ),
    ] = None,
    unserved_limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds a request without deadline may wait for a worker; 0 for ever."
            "  [env: DIALBACK_UNSERVED_LIMIT; default: 0]",
        ),
    ] = None,
    server: ServerOption = None,
    status_port: Annotated[
        int | None,
        typer.Option(
            help="Port of /metrics, /health, /live, /ready; 0 any free one, -1 off."
            "  [env: DIALBACK_STATUS_PORT; default: 0]"
        ),
    ] = None,
) -> None:
    """Tell the callers of requests that no worker has taken in time; then delete the requests.

    In time is before the request's deadlines or, if it has none (Dynamo's callers), within
    the unserved limit. Requests that a worker has, or had, are not touched: workers answer
    for them. Workers do the same for their own queue; this command is for queues whose
    workers are away. Runs until SIGTERM or Ctrl-C. Exit codes: 0 ended, 2 wrong settings,
    3 no such queue (--once), 69 no nats-server, 77 NATS refuses the user.

    \b
    Examples:
      dialback janitor --all
      dialback janitor demo.backend.generate --unserved-limit 600
      dialback janitor --all --once -s nats://nats:4222
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    settings = Settings.load(
        server=server,
        janitor_interval=interval,
        unserved_limit=unserved_limit,
        status_port=status_port,
    )
    set_up_logs(settings.log_level, settings.log_format)
    raise typer.Exit(run(_serve(endpoints or [], settings, everything=everything, once=once)))


async def _serve(endpoints: list[str], settings: Settings, *, everything: bool, once: bool) -> int:
    if everything and endpoints:
        raise ConfigError("not both: name endpoints, or give --all")
    if not (everything or endpoints):
        raise ConfigError("name the endpoints (NAMESPACE.COMPONENT.ENDPOINT), or give --all")
    wanted = [Endpoint.parse(endpoint) for endpoint in endpoints]
    service = JanitorService(wanted, settings=settings)
    # One pass is ended by a signal as any command is; a service ends in an orderly way.
    return int(await service.run(once=once, signals=not once))
