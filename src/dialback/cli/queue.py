"""``dialback queue``: look into queues, and cancel requests. No consumer is created."""

from typing import Annotated, Any, Final

import typer

from dialback.cli.cancel import cancel_requests
from dialback.cli.inspection import (
    DEFAULT_MAX_BYTES,
    DEFAULT_TIMEOUT,
    Target,
    body_of,
    refusal_of,
    refusal_text,
)
from dialback.cli.options import (
    BodyOption,
    EndpointArgument,
    JsonOption,
    MaxBytesOption,
    Output,
    OutputOption,
    ServerOption,
    TimeoutOption,
    choices,
    chosen_output,
    parse_choice,
)
from dialback.cli.output import (
    Column,
    human_age,
    human_left,
    human_size,
    json_text,
    print_json,
    print_note,
    print_record,
    print_rows,
)
from dialback.cli.run import run
from dialback.queue.inspection import LaneState, QueuedMessage, QueueInfo
from dialback.queue.topology import Endpoint, Lane
from dialback.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into queues; only cancel changes anything.",
)

_LANE_COLUMNS: Final = (
    "lane",
    "queued",
    "in_flight",
    "redelivered",
    "waiting",
    Column("oldest_seconds", "oldest", human_age, right=True),
    Column("oldest_queued_seconds", "oldest queued", human_age, right=True),
)
_LIST_COLUMNS: Final = ("endpoint", *_LANE_COLUMNS, Column("dead_letters", "dead"), "state")
_PEEK_COLUMNS: Final = (
    Column("sequence", "seq"),
    Column("request_id", "id"),
    "lane",
    "state",
    Column("age_seconds", "age", human_age, right=True),
    Column("deadline_seconds_left", "deadline", human_left, right=True),
    Column("size_bytes", "size", human_size, right=True),
    "caller",
    "codec",
    Column("refusal", "note", refusal_text, fold=True),
)


@app.command("ls")
def list_queues(
    *,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
) -> None:
    """List all queues, one row for each endpoint and lane.

    QUEUED waits for its first delivery; IN FLIGHT is being served or waits for a retry;
    WAITING are pull requests of workers with free slots. DEAD counts the dead letters of the
    whole endpoint. STATE is ok, behind (queued, and no worker asks for one), paused or
    no_consumer (nobody can take the lane's requests).

    \b
    Examples:
      dialback queue ls
      dialback queue ls --json | jq '.[] | select(.queued > 100)'
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    rows = run(_list(Target(server, timeout)))
    print_rows(rows, _LIST_COLUMNS, chosen_output(output, as_json))
    if not rows:
        print_note("no queues here: a worker creates its endpoint's queue when it starts")


async def _list(target: Target) -> list[dict[str, Any]]:
    async with target.inspector() as inspector:
        found = await inspector.queues()
    return [
        {
            "endpoint": str(row.endpoint),
            **_lane_record(row.state),
            "dead_letters": row.dead_letters,
        }
        for row in found
    ]


@app.command("info")
def show_queue(
    endpoint: EndpointArgument,
    *,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
) -> None:
    """Show one queue: state, lanes, settings, what differs from the wanted settings, advice.

    What is wanted are the defaults, and this environment's DIALBACK_ACK_WAIT,
    DIALBACK_REPLICAS, DIALBACK_MAX_MESSAGES and DIALBACK_MAX_ACK_PENDING.

    \b
    Examples:
      dialback queue info demo.backend.generate
      dialback queue info demo.backend.generate --json | jq .drift
    """  # noqa: D301
    info = run(_info(endpoint, Target(server, timeout)))
    chosen = chosen_output(output, as_json)
    record = _info_record(info)
    if chosen is Output.TABLE:
        _print_info(record)
    else:
        print_json(record)


async def _info(endpoint: str, target: Target) -> QueueInfo:
    parsed = Endpoint.parse(endpoint)
    wanted = Settings.load().queue_settings()
    async with target.inspector() as inspector:
        return await inspector.queue(parsed, wanted)


@app.command("peek")
def peek_queue(
    endpoint: EndpointArgument,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Requests to show, oldest first.")] = 20,
    lane: Annotated[
        Lane | None,
        typer.Option(
            parser=parse_choice(Lane),
            metavar=choices(Lane),
            help="Only this lane.",
            show_default=False,
        ),
    ] = None,
    body: BodyOption = False,
    max_bytes: MaxBytesOption = DEFAULT_MAX_BYTES,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
) -> None:
    """Show the oldest requests of a queue without taking them.

    STATE is queued, or in_flight (a worker has it, or it waits for a retry). DEADLINE is the
    time until the caller gives up. NOTE says why a worker would refuse the request.

    \b
    Examples:
      dialback queue peek demo.backend.generate --limit 5
      dialback queue peek demo.backend.generate --lane high --body -o jsonl
    """  # noqa: D301
    shown = max_bytes if body else None
    found = run(_peek(endpoint, limit, lane, Target(server, timeout)))
    rows = [_peek_record(message, shown) for message in found]
    columns = (*_PEEK_COLUMNS, Column("body", show=json_text, fold=True)) if body else _PEEK_COLUMNS
    print_rows(rows, columns, chosen_output(output, as_json))
    if not rows:
        print_note("the queue is empty")


async def _peek(
    endpoint: str, limit: int, lane: Lane | None, target: Target
) -> list[QueuedMessage]:
    parsed = Endpoint.parse(endpoint)
    async with target.inspector() as inspector:
        return await inspector.peek(parsed, limit, lane)


app.command("cancel")(cancel_requests)


# --- records ----------------------------------------------------------------------------


def _lane_record(state: LaneState) -> dict[str, Any]:
    return {
        "lane": state.lane.value,
        "state": lane_state(state),
        "has_consumer": state.has_consumer,
        "paused": state.paused,
        "queued": state.queued,
        "in_flight": state.in_flight,
        "redelivered": state.redelivered,
        "waiting": state.waiting,
        "oldest_seconds": state.oldest,
        "oldest_queued_seconds": state.oldest_queued,
    }


def lane_state(state: LaneState) -> str:
    """Return one word for a lane: ``ok``, ``behind``, ``paused`` or ``no_consumer``."""
    if not state.has_consumer:
        return "no_consumer"
    if state.paused:
        return "paused"
    return "behind" if state.queued and not state.waiting else "ok"


def _info_record(info: QueueInfo) -> dict[str, Any]:
    return {
        "endpoint": str(info.endpoint),
        "stream": info.stream,
        "created": info.created,
        "server_version": info.server_version,
        "max_payload_bytes": info.max_payload,
        "messages": info.messages,
        "bytes": info.size,
        "first_sequence": info.first_sequence,
        "last_sequence": info.last_sequence,
        "dead_letters": info.dead_letters,
        "dead_bytes": info.dead_size,
        "settings": dict(info.settings),
        "lanes": [_lane_record(state) for state in info.lanes],
        "drift": list(info.drift),
        "advice": list(info.advice),
    }


def _print_info(record: dict[str, Any]) -> None:
    parts = {name: record[name] for name in ("settings", "lanes", "drift", "advice")}
    simple = {name: value for name, value in record.items() if name not in parts}
    shows = {"bytes": human_size, "dead_bytes": human_size, "max_payload_bytes": human_size}
    print_record(simple, Output.TABLE, show=shows)
    typer.echo("\nLANES")
    print_rows(parts["lanes"], (*_LANE_COLUMNS, "state"), Output.TABLE)
    typer.echo("\nSETTINGS")
    limits = dict.fromkeys((n for n in parts["settings"] if n.startswith("max_")), _limit)
    print_record(parts["settings"], Output.TABLE, show=limits)
    for title in ("drift", "advice"):
        typer.echo(f"\n{title.upper()}")
        for line in parts[title] or ["none"]:
            typer.echo(f"  {line}")


def _limit(value: float) -> str:
    return f"{value:g}" if value > 0 else "no limit"


def _peek_record(message: QueuedMessage, max_bytes: int | None) -> dict[str, Any]:
    states = {None: "unknown", True: "in_flight", False: "queued"}
    record: dict[str, Any] = {
        "sequence": message.sequence,
        "request_id": message.request_id,
        "lane": message.lane,
        "state": states[message.delivered],
        "subject": message.subject,
        "stored_at": message.stored_at,
        "age_seconds": message.age,
        "deadline_seconds_left": message.deadline_left,
        "size_bytes": len(message.payload),
        "caller": message.caller,
        "codec": message.codec,
        "refusal": _refusal(message),
    }
    if max_bytes is not None:
        record |= body_of(message.payload, message.codec, max_bytes)
    return record


def _refusal(message: QueuedMessage) -> dict[str, Any] | None:
    refusal = refusal_of(message.delivery)
    left = message.deadline_left
    if refusal is None and left is not None and left <= 0:
        reason = "its caller has given up; a worker will answer it without running it"
        return {"outcome": "expired", "reason": reason, "answered_at": message.caller or None}
    return refusal
