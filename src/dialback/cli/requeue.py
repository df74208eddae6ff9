"""``dialback dlq requeue``: show the plan, ask, queue the letters' requests again."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from dialback.cli.confirm import asked, is_interactive
from dialback.cli.inspection import DEFAULT_TIMEOUT, Target
from dialback.cli.options import (
    DryRunOption,
    EndpointArgument,
    JsonOption,
    Output,
    OutputOption,
    ServerOption,
    TimeoutOption,
    YesOption,
    chosen_output,
)
from dialback.cli.output import Column, human_age, print_error, print_note, print_rows
from dialback.cli.run import ExitCode, run
from dialback.errors import ConfigError, ServerUnavailableError
from dialback.queue.inspection import Letter, Requeued, RequeueStatus
from dialback.queue.inspector import Inspector
from dialback.queue.topology import Endpoint

_DEFAULT_MAX: Final = 100
_AGE: Final = Column("age_seconds", "age", human_age, right=True)
_PLAN_COLUMNS: Final = (
    Column("sequence", "seq"),
    Column("request_id", "id"),
    "outcome",
    _AGE,
    "requeued",
    Column("reason", fold=True),
)
_RESULT_COLUMNS: Final = (
    Column("sequence", "seq"),
    Column("request_id", "id"),
    "status",
    Column("queued_sequence", "queued as"),
    Column("reason", fold=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    """What an operator asked to requeue."""

    endpoint: str
    ids: tuple[str, ...]
    everything: bool
    limit: int

    def check(self) -> Endpoint:
        """Return the endpoint.

        Raises:
            ConfigError: If the endpoint is wrong, or not exactly one of ids and ``--all`` given.
        """
        if self.everything == bool(self.ids):
            raise ConfigError("name the letters (ID, its beginning, or seq:N), or give --all")
        return Endpoint.parse(self.endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The letters that are to be requeued, as rows; and how many stay because of --max."""

    endpoint: Endpoint
    rows: list[dict[str, Any]]
    left_out: int


def requeue_letters(
    endpoint: EndpointArgument,
    letter_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID", help="Request ids, beginnings of them, or seq:N.", show_default=False
        ),
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="All letters of the endpoint.", show_default=False)
    ] = False,
    limit: Annotated[
        int, typer.Option("--max", min=1, metavar="N", help="At most N letters, oldest first.")
    ] = _DEFAULT_MAX,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
) -> None:
    """Queue the requests of dead letters again; each letter is deleted once its request is in.

    Deadlines are removed: what you requeue is run, however late. Answers still go to the
    caller that asked; if it is gone, the request becomes a dead letter again. Shows the
    plan and asks; without a terminal, -y is needed (exit 4). Exit codes: 0 all queued,
    1 none, 3 no such letter or endpoint, 4 not confirmed, 5 some failed, 69 no server.

    \b
    Examples:
      dialback dlq requeue demo.backend.generate 9f2c71e0
      dialback dlq requeue demo.backend.generate --all --max 500 --dry-run
      dialback dlq requeue demo.backend.generate seq:4 seq:9 -y --json
    """  # noqa: D301
    chosen = chosen_output(output, as_json)
    selection = _Selection(
        endpoint=endpoint, ids=tuple(letter_ids or ()), everything=everything, limit=limit
    )
    target = Target(server, timeout)
    plan = run(_plan(selection, target))
    if dry_run:
        print_rows([row | {"status": "planned"} for row in plan.rows], _PLAN_COLUMNS, chosen)
        _note_plan(plan)
        return
    if not plan.rows:
        print_rows([], _RESULT_COLUMNS, chosen)
        print_note("no dead letters")
        return
    if not yes:
        _confirm(plan)
    # The plan's connection is closed by now: a person may take an hour to answer.
    raise typer.Exit(run(_carry_out(plan, chosen, target)))


async def _plan(selection: _Selection, target: Target) -> _Plan:
    endpoint = selection.check()
    async with target.inspector() as inspector:
        if selection.everything:
            letters = await inspector.dead_letters(endpoint, selection.limit)
            total = await inspector.dead_letter_count(endpoint)
        else:
            letters = await _resolve(inspector, endpoint, selection.ids)
            total = len(letters)
    rows = [_plan_record(endpoint, found) for found in letters[: selection.limit]]
    return _Plan(endpoint=endpoint, rows=rows, left_out=max(0, total - len(rows)))


async def _resolve(inspector: Inspector, endpoint: Endpoint, ids: tuple[str, ...]) -> list[Letter]:
    """Return the letters that the ids mean, each once, in the given order."""
    found: dict[int, Letter] = {}
    for given in ids:
        letter = await inspector.dead_letter(endpoint, given)
        found.setdefault(letter.sequence, letter)
    return list(found.values())


def _note_plan(plan: _Plan) -> None:
    print_note(
        f"{len(plan.rows)} to requeue to {plan.endpoint}, without deadlines. Requests whose"
        " caller is gone will become dead letters again."
    )
    if plan.left_out:
        print_note(f"{plan.left_out} more stay (--max {len(plan.rows)})")


def _confirm(plan: _Plan) -> None:
    """Show the plan and ask.

    Raises:
        typer.Exit: With code 4 if nobody can be asked, or the answer is no.
    """
    if not is_interactive():
        print_error(
            "this changes the queue and nobody can be asked: add -y, or look first with --dry-run"
        )
        raise typer.Exit(ExitCode.REFUSED)
    print_rows(plan.rows, _PLAN_COLUMNS, Output.TABLE, err=True)
    _note_plan(plan)
    if not asked("Requeue them?"):
        print_note("nothing was changed")
        raise typer.Exit(ExitCode.REFUSED)


async def _carry_out(plan: _Plan, output: Output, target: Target) -> int:
    results: list[dict[str, Any]] = []
    lost: ServerUnavailableError | None = None
    try:
        async with target.inspector() as inspector:
            for row in plan.rows:
                result = await inspector.requeue(plan.endpoint, row["sequence"])
                results.append(_result_record(row, result))
    except ServerUnavailableError as error:
        lost = error
    finally:
        # What was done is said, whatever ended it.
        print_rows(results, _RESULT_COLUMNS, output)
    if lost is not None:
        print_error(f"{len(plan.rows) - len(results)} of {len(plan.rows)} not done: {lost}")
    return _exit_code(results, lost is not None)


def _exit_code(results: list[dict[str, Any]], lost: bool) -> int:
    good = {RequeueStatus.REQUEUED.value, RequeueStatus.GONE.value}
    done = sum(result["status"] in good for result in results)
    if done == len(results) and not lost:
        return ExitCode.DONE
    if any(result["status"] != RequeueStatus.FAILED for result in results):
        return ExitCode.PARTLY_FAILED
    return ExitCode.UNAVAILABLE if lost else ExitCode.FAILED


# --- records ----------------------------------------------------------------------------


def _plan_record(endpoint: Endpoint, found: Letter) -> dict[str, Any]:
    return {
        "endpoint": str(endpoint),
        "sequence": found.sequence,
        "request_id": found.request_id,
        "outcome": found.outcome,
        "reason": found.reason,
        "requeued": len(found.history),
        "age_seconds": found.age,
        "subject": found.origin_subject,
    }


def _result_record(row: dict[str, Any], result: Requeued) -> dict[str, Any]:
    return {
        "endpoint": row["endpoint"],
        "sequence": result.sequence,
        "request_id": row["request_id"],
        "status": result.status.value,
        "queued_sequence": result.queued_sequence,
        "reason": result.reason,
    }
