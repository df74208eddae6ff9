"""``dialback worker``: run a worker."""

import gc
import sys
from typing import Annotated

import typer

from dialback.cli.logs import set_up_logs
from dialback.cli.options import EndpointOption, ServerOption
from dialback.cli.run import run
from dialback.ingress.engine import load_engine
from dialback.queue.topology import Endpoint
from dialback.settings import Settings
from dialback.supervised import SupervisorLink
from dialback.supervisor import Supervisor
from dialback.worker import Worker

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run workers.")


@app.command("run")
def run_worker(
    engine: Annotated[
        str, typer.Argument(metavar="ENGINE", help="MODULE:ATTRIBUTE of the engine.")
    ],
    *,
    endpoint: EndpointOption,
    slots: Annotated[
        int | None,
        typer.Option(help="Requests served at the same time.  [env: DIALBACK_SLOTS; default: 16]"),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="Worker processes, each with these slots; from 2 on they are supervised."
            "  [env: DIALBACK_PROCESSES; default: 1]"
        ),
    ] = None,
    server: ServerOption = None,
    status_port: Annotated[
        int | None,
        typer.Option(
            help="Port of /metrics, /health, /live, /ready; 0 any free one, -1 off. Each further"
            " process takes the next one.  [env: DIALBACK_STATUS_PORT; default: 0]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name in logs and dead letters.  [env: DIALBACK_WORKER_NAME]"),
    ] = None,
    supervised_by: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve an endpoint with an engine until SIGTERM or Ctrl-C, then drain.

    The first signal drains: what runs is finished, nothing new is taken. A second one ends
    what runs. Exit codes: 0 drained, 1 the engine's startup() failed, 2 wrong settings, 4 the
    queue has other settings than needed, 69 no nats-server, 70 the queue answered no more, 75 the
    shutdown budget ran out, 77 NATS refuses the user, 143 ended by a second signal.

    With --processes 2 or more, a supervisor starts so many workers, starts those again that
    die, hands their messages back to the queue at once, and exits with the worst of their codes.

    \b
    Examples:
      dialback worker run examples.echo:generate --endpoint demo.backend.generate
      dialback worker run my_engines:Llama -e prod.llm.generate --slots 4
      dialback worker run m:engine -e a.b.c --processes 4 --status-port 8080
      DIALBACK_SLOTS=8 NATS_SERVER=nats://nats:4222 dialback worker run m:engine -e a.b.c
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    settings = Settings.load(
        slots=slots, processes=processes, server=server, status_port=status_port, worker_name=name
    )
    set_up_logs(settings.log_level, settings.log_format)
    if settings.processes > 1:
        raise typer.Exit(run(_supervise(engine, endpoint, settings)))
    link = None if supervised_by is None else SupervisorLink.inherited(supervised_by)
    raise typer.Exit(run(_serve(engine, endpoint, settings, link)))


async def _serve(
    engine: str, endpoint: str, settings: Settings, link: SupervisorLink | None
) -> int:
    worker = Worker(load_engine(engine), endpoint=endpoint, settings=settings, supervisor=link)
    _spare_the_garbage_collector()
    code = await worker.run()
    if link is not None:
        link.close()
    return int(code)


def _spare_the_garbage_collector() -> None:
    """Look for cycles less often; requests leave none, and looking cost 5 to 15 % of the CPU."""
    gc.collect()
    gc.freeze()  # what the imports left is never garbage
    gc.set_threshold(10_000)  # objects in flight are many, and nearly all of them go by themselves


async def _supervise(engine: str, endpoint: str, settings: Settings) -> int:
    Endpoint.parse(endpoint)  # one sentence about it, and not one from each process
    command = [sys.executable, "-m", "dialback", "worker", "run", engine, "--endpoint", endpoint]
    return await Supervisor(command, settings).run()
