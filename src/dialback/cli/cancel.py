"""``dialback queue cancel``: show what would be cancelled, ask, end it and tell the callers."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
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
from dialback.errors import NotFoundError, ServerUnavailableError
from dialback.ingress.answer import Answerer, cancellation
from dialback.outcomes import Delivery, Outcome
from dialback.queue.cancel_search import SEQUENCE, CancelSearch, Queued
from dialback.queue.cancellation import CancelOrder, Running, ask_workers
from dialback.queue.client import QueueClient
from dialback.queue.topology import Endpoint
from dialback.settings import Settings
from dialback.transport.address import CallHomePolicy
from dialback.transport.dial import Dialer

_NS: Final = 1_000_000_000
_DEFAULT_SCAN: Final = 10_000
_REFUSAL_WAIT: Final = 0.1  # seconds; see Answerer
_PLAN_COLUMNS: Final = (
    Column("sequence", "seq"),
    Column("request_id", "id"),
    "lane",
    "state",
    "worker",
    Column("age_seconds", "age", human_age, right=True),
)
_RESULT_COLUMNS: Final = (
    Column("sequence", "seq"),
    Column("request_id", "id"),
    "status",
    "worker",
    "caller_told",
    Column("reason", fold=True),
)
_GOOD: Final = frozenset({"cancelled", "gone"})


@dataclass(frozen=True, slots=True)
class _Planned:
    """One message that is to be cancelled."""

    queued: Queued
    given: str
    worker: str | None

    @property
    def request_id(self) -> str:
        """What workers and the operator call it."""
        return self.queued.request_id or self.given


@dataclass(frozen=True, slots=True)
class _Canceller:
    """An operator's connection, for one endpoint."""

    client: QueueClient
    endpoint: Endpoint
    answerer: Answerer
    reason: str

    @property
    def search(self) -> CancelSearch:
        return CancelSearch(self.client.connection, self.client.api, self.endpoint)

    async def ask(
        self, request_id: str, expected: Sequence[int], *, dry_run: bool = False
    ) -> dict[int, Running]:
        """Give the order to all workers; return what they run, by sequence."""
        order = CancelOrder(request_id, self.reason, dry_run)
        running = await ask_workers(self.client.connection, self.endpoint, order, expected=expected)
        return {one.sequence: one for one in running}

    async def plan(self, given: str, scan: int) -> list[_Planned]:
        """Find the messages of one request.

        Raises:
            NotFoundError: If there is none.
        """
        found = await self.search.find(given, scan=scan)
        if not found:  # perhaps it runs, and is further back in the queue than was read
            for sequence in await self.ask(given, (), dry_run=True):
                found += await self.search.find(f"{SEQUENCE}{sequence}", scan=0)
        if not found:
            raise NotFoundError(
                f"no request {given!r} in the queue of {self.endpoint}: it has ended, or is not"
                " known by this id; see dialback queue peek"
            )
        sequences = [one.delivery.sequence for one in found]
        workers: dict[int, str] = {}
        for request_id in {one.request_id for one in found} - {""}:
            running = await self.ask(request_id, sequences, dry_run=True)
            workers |= {sequence: one.worker for sequence, one in running.items()}
        return [_Planned(one, given, workers.get(one.delivery.sequence)) for one in found]

    async def cancel(self, planned: Sequence[_Planned]) -> list[dict[str, Any]]:
        """Cancel the messages of one request: at the workers, and in the queue."""
        sequences = [one.queued.delivery.sequence for one in planned]
        running = await self.ask(planned[0].request_id, sequences)
        return [
            _at_worker(one, at) if (at := running.get(sequence)) else await self._in_queue(one)
            for one, sequence in zip(planned, sequences, strict=True)
        ]

    async def _in_queue(self, planned: _Planned) -> dict[str, Any]:
        """Tell the caller, then delete the message.

        A worker that takes it in between has been given the order, and does not run it.
        """
        delivery = planned.queued.delivery
        if not await self.search.still_there(delivery):
            return _result(planned, "gone", reason="it ended meanwhile")
        error = cancellation(self.reason)
        ending = await self.answerer.end(delivery, Outcome.CANCELLED, error)
        if not await self.search.remove(delivery):
            return _result(planned, "gone", reason="it ended meanwhile")
        told = ending.caller_told
        reason = "" if told else "its caller could not be reached, or has left"
        return _result(planned, "cancelled", caller_told=told, reason=reason)


def cancel_requests(
    endpoint: EndpointArgument,
    request_ids: Annotated[
        list[str],
        typer.Argument(metavar="REQUEST_ID", help="Request ids, or seq:N.", show_default=False),
    ],
    *,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="What the callers are told.")
    ] = "",
    scan: Annotated[
        int,
        typer.Option(
            "--scan", min=0, metavar="N", help="Requests of a lane to read for ids not in subjects."
        ),
    ] = _DEFAULT_SCAN,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    server: ServerOption = None,
    output: OutputOption = Output.TABLE,
    as_json: JsonOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
) -> None:
    """Cancel requests: queued, waiting for a retry, or running; their callers are told.

    A running request's engine is ended by its worker. Of any other the caller is dialled from
    here, then its message is deleted; this machine has to reach it. Requests of Dynamo's
    callers have no id in their subject: for a queued one the oldest --scan requests of each
    lane are read. An id that several messages have means all of them. Shows the plan and
    asks; without a terminal, -y is needed (exit 4). Exit codes: 0 all cancelled or ended
    meanwhile, 1 none, 3 no such request or endpoint, 4 not confirmed, 5 some not, 69 no
    server, 77 NATS refuses the user.

    \b
    Examples:
      dialback queue cancel demo.backend.generate 9f2c71e0-4b7d-4c52-9d0e-7c1a30f0a1b2
      dialback queue cancel demo.backend.generate r-1 r-2 --reason 'wrong prompt' -y
      dialback queue cancel demo.backend.generate seq:17 --dry-run
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    chosen = chosen_output(output, as_json)
    target = Target(server, timeout)
    planned = run(_plan(target, endpoint, request_ids, scan))
    where = Endpoint.parse(endpoint)
    rows = [_plan_record(where, one) for one in planned]
    if dry_run:
        print_rows([row | {"status": "planned"} for row in rows], _PLAN_COLUMNS, chosen)
        return
    if not yes:
        _confirm(rows)
    # The plan's connection is closed by now: a person may take an hour to answer.
    raise typer.Exit(run(_carry_out(target, where, planned, reason, chosen)))


@asynccontextmanager
async def _connected(
    target: Target, endpoint: Endpoint, reason: str = ""
) -> AsyncGenerator[_Canceller]:
    async with target.client() as (client, settings):
        yield _Canceller(client, endpoint, _answerer(settings), reason)


def _answerer(settings: Settings) -> Answerer:
    policy = CallHomePolicy(settings.call_home_networks)
    return Answerer(Dialer(policy, settings.dial_settings()), _REFUSAL_WAIT)


async def _plan(target: Target, endpoint: str, ids: list[str], scan: int) -> list[_Planned]:
    found: dict[int, _Planned] = {}
    async with _connected(target, Endpoint.parse(endpoint)) as canceller:
        for given in dict.fromkeys(ids):
            for one in await canceller.plan(given, scan):
                found.setdefault(one.queued.delivery.sequence, one)
    return list(found.values())


def _confirm(rows: list[dict[str, Any]]) -> None:
    """Show the plan and ask.

    Raises:
        typer.Exit: With code 4 if nobody can be asked, or the answer is no.
    """
    if not is_interactive():
        print_error(
            "this ends requests and nobody can be asked: add -y, or look first with --dry-run"
        )
        raise typer.Exit(ExitCode.REFUSED)
    print_rows(rows, _PLAN_COLUMNS, Output.TABLE, err=True)
    if not asked("Cancel them?"):
        print_note("nothing was changed")
        raise typer.Exit(ExitCode.REFUSED)


async def _carry_out(
    target: Target, endpoint: Endpoint, planned: list[_Planned], reason: str, output: Output
) -> int:
    by_id: dict[str, list[_Planned]] = {}
    for one in planned:
        by_id.setdefault(one.request_id, []).append(one)
    results: list[dict[str, Any]] = []
    lost: ServerUnavailableError | None = None
    try:
        async with _connected(target, endpoint, reason) as canceller:
            for messages in by_id.values():
                results += await canceller.cancel(messages)
    except ServerUnavailableError as error:
        lost = error
    finally:
        # What was done is said, whatever ended it.
        rows = [{"endpoint": str(endpoint), **result} for result in results]
        print_rows(rows, _RESULT_COLUMNS, output)
    if lost is not None:
        print_error(f"{len(planned) - len(results)} of {len(planned)} not done: {lost}")
    return _exit_code(results, lost is not None)


def _exit_code(results: list[dict[str, Any]], lost: bool) -> int:
    done = sum(result["status"] in _GOOD for result in results)
    if done == len(results) and not lost:
        return ExitCode.DONE
    if done:
        return ExitCode.PARTLY_FAILED
    return ExitCode.UNAVAILABLE if lost else ExitCode.FAILED


# --- records ----------------------------------------------------------------------------


def _plan_record(endpoint: Endpoint, planned: _Planned) -> dict[str, Any]:
    delivery = planned.queued.delivery
    return {
        "endpoint": str(endpoint),
        "sequence": delivery.sequence,
        "request_id": planned.request_id,
        "lane": delivery.lane,
        "state": _state(planned),
        "worker": planned.worker,
        "age_seconds": _age(delivery),
    }


def _state(planned: _Planned) -> str:
    if planned.worker is not None:
        return "running"
    return "waiting" if planned.queued.delivered else "queued"


def _age(delivery: Delivery) -> float:
    return max(0, time.time_ns() - delivery.published_ns) / _NS


def _at_worker(planned: _Planned, running: Running) -> dict[str, Any]:
    if running.cancelled:
        return _result(planned, "cancelled", worker=running.worker)
    return _result(planned, "ending", worker=running.worker, reason="it was ending already")


def _result(
    planned: _Planned,
    status: str,
    *,
    worker: str | None = None,
    caller_told: bool | None = None,
    reason: str = "",
) -> dict[str, Any]:
    return {
        "sequence": planned.queued.delivery.sequence,
        "request_id": planned.request_id,
        "status": status,
        "worker": worker,
        "caller_told": caller_told,
        "reason": reason,
    }
