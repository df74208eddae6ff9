"""``dialback dlq``: look at dead letters, and queue their requests again."""

from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

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
    chosen_output,
)
from dialback.cli.output import (
    Column,
    human_age,
    human_size,
    json_text,
    print_note,
    print_record,
    print_rows,
)
from dialback.cli.requeue import requeue_letters
from dialback.cli.run import run
from dialback.outcomes import Delivery
from dialback.queue.inspection import Letter
from dialback.queue.topology import Endpoint

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at dead letters, and queue their requests again.",
)
app.command("requeue")(requeue_letters)

_LIST_COLUMNS: Final = (
    "endpoint",
    Column("sequence", "seq"),
    Column("request_id", "id"),
    "outcome",
    Column("age_seconds", "age", human_age, right=True),
    Column("deliveries", "tries"),
    "requeued",
    Column("reason", fold=True),
)
_SHOWN: Final[dict[str, Callable[[Any], str]]] = {
    "age_seconds": human_age,
    "size_bytes": human_size,
    "header_names": ", ".join,
    "refusal": refusal_text,
    "body": json_text,
}

LetterArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Request id, the beginning of one, or seq:N.", show_default=False
    ),
]


@app.command("ls")
def list_letters(
    endpoint: Annotated[
        str | None,
        typer.Argument(metavar="ENDPOINT", help="Whose; all endpoints if none is given."),
    ] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Letters of each endpoint, oldest first.")] = 50,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
) -> None:
    """List dead letters: requests that were given up, with the reason.

    TRIES are the deliveries before it was given up, REQUEUED how often an operator has put it
    back already.

    \b
    Examples:
      dialback dlq ls
      dialback dlq ls demo.backend.generate --limit 500 -o jsonl | jq -r .outcome | sort | uniq -c
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    rows, total = run(_list(endpoint, limit, Target(server, timeout)))
    columns = _LIST_COLUMNS[1:] if endpoint else _LIST_COLUMNS
    print_rows(rows, columns, chosen_output(output, as_json))
    if not rows:
        print_note("no dead letters")
    elif len(rows) < total:
        print_note(f"{len(rows)} of {total}; --limit shows more")


async def _list(
    endpoint: str | None, limit: int, target: Target
) -> tuple[list[dict[str, Any]], int]:
    chosen = [Endpoint.parse(endpoint)] if endpoint else None
    async with target.inspector() as inspector:
        rows: list[dict[str, Any]] = []
        total = 0
        for one in chosen if chosen is not None else await inspector.dead_endpoints():
            total += await inspector.dead_letter_count(one)
            rows += [_record(one, found) for found in await inspector.dead_letters(one, limit)]
    return rows, total


@app.command("show")
def show_letter(
    endpoint: EndpointArgument,
    letter_id: LetterArgument,
    *,
    body: BodyOption = False,
    max_bytes: MaxBytesOption = DEFAULT_MAX_BYTES,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
) -> None:
    """Show one dead letter: why, where it came from, its history, and whether it is readable.

    \b
    Examples:
      dialback dlq show demo.backend.generate 9f2c71e0
      dialback dlq show demo.backend.generate seq:12 --body
    """  # noqa: D301
    parsed, found = run(_show(endpoint, letter_id, Target(server, timeout)))
    record = _full_record(parsed, found)
    if body:
        record |= body_of(found.payload, found.codec, max_bytes)
    print_record(record, chosen_output(output, as_json), show=_SHOWN)


async def _show(endpoint: str, letter_id: str, target: Target) -> tuple[Endpoint, Letter]:
    parsed = Endpoint.parse(endpoint)
    async with target.inspector() as inspector:
        return parsed, await inspector.dead_letter(parsed, letter_id)


# --- records ----------------------------------------------------------------------------


def _record(endpoint: Endpoint, found: Letter) -> dict[str, Any]:
    return {
        "endpoint": str(endpoint),
        "sequence": found.sequence,
        "request_id": found.request_id,
        "outcome": found.outcome,
        "reason": found.reason,
        "worker": found.worker,
        "deliveries": found.deliveries,
        "requeued": len(found.history),
        "lane": found.lane,
        "stored_at": found.stored_at,
        "age_seconds": found.age,
        "size_bytes": len(found.payload),
        "caller": found.caller,
    }


def _full_record(endpoint: Endpoint, found: Letter) -> dict[str, Any]:
    delivery = Delivery(payload=found.payload, headers=found.headers, sequence=found.sequence)
    return _record(endpoint, found) | {
        "codec": found.codec,
        "subject": found.subject,
        "origin": found.origin,
        "origin_subject": found.origin_subject,
        "history": [dict(entry) for entry in found.history],
        "header_names": sorted(found.headers),
        "refusal": refusal_of(delivery),
    }
