"""``python -m benchmarks``: measure dialback beside its peers, and write down what came out.

Machines differ and are shared, so only ratios within one run mean something.
"""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from benchmarks import chart, document
from benchmarks.bars import bars
from benchmarks.collect import chosen, measure, scenarios
from benchmarks.machine import commit, this_machine
from benchmarks.report import (
    Conditions,
    Entry,
    Measured,
    ReportError,
    Result,
    load,
    merge,
    missed_goals,
    save,
)
from benchmarks.scenario import Lab, Scenario
from benchmarks.table import goal_text, markdown, spread_text, wanted_text

_INTERRUPTED = 130
_USAGE = 2


def benchmarks(
    *,
    full: Annotated[bool, typer.Option("--full", help="Full loads.")] = False,
    only: Annotated[str, typer.Option(metavar="LETTERS", help="Some scenarios, as abc.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each contestant.")] = 3,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Put tables between its markers, and a chart beside."),
    ] = None,
    save_to: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.json", help="Keep every run.")
    ] = None,
    read: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="FILE.json", help="Measure nothing; may be repeated."),
    ] = None,
    goals: Annotated[bool, typer.Option("--goals/--no-goals", help="Fail on missed goals.")] = True,
    show: Annotated[bool, typer.Option("--list", help="List the scenarios.")] = False,
) -> None:
    """Measure dialback beside its peers, in turns, on this machine.

    Tables go to stdout, or into FILE.md; what is going on goes to stderr. Exit codes: 0 all
    goals met, 1 a goal missed or a scenario failed, 2 wrong usage, 130 interrupted (what was
    measured is still saved and written).

    \b
    Examples:
      python -m benchmarks --only b --rounds 5
      python -m benchmarks --full --save .bench/full.json --write docs/performance.md
      python -m benchmarks --from .bench/full.json --from .bench/b.json --write docs/performance.md
      python -m benchmarks.idle_slots
    """  # noqa: D301 -- \b is click's mark for text that is not rewrapped
    letters = only.lower().replace(",", "").replace(" ", "")
    code = 0
    try:
        if show:
            print("\n".join(f"{one.letter}  {one.title}" for one in chosen(scenarios(), letters)))
            return
        if read:
            measurements = [load(file) for file in read]
        else:
            lab = Lab(full=full, rounds=rounds, progress=_progress)
            measured, code = _measure(chosen(scenarios(), letters), lab)
            measurements = [measured]
            if save_to is not None:
                save(measured, save_to)
        entries = [
            one for one in merge(measurements) if not letters or one.result.letter in letters
        ]
        _show(entries, write)
    except (ValueError, ReportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(_USAGE) from error
    missed = _tell_missed(entries)
    raise typer.Exit(code or (1 if missed and goals else 0))


def _measure(picked: list[Scenario], lab: Lab) -> tuple[Measured, int]:
    """Return what was measured, also if Ctrl-C or a failure ended it, and the exit code."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    head = commit()
    results: list[Result] = []
    code = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            failed = runner.run(measure(picked, lab, done=results.append))
        code = 1 if failed else 0
    except KeyboardInterrupt:
        _progress("interrupted")
        code = _INTERRUPTED
    conditions = Conditions(
        machine=this_machine(), date=now, commit=head, full=lab.full, rounds=lab.rounds
    )
    return Measured(conditions=conditions, results=results), code


def _show(entries: list[Entry], file: Path | None) -> None:
    """Print the tables, or write them and the chart."""
    if file is None or not entries:
        print(markdown(entries), end="")
        return
    document.write(file, markdown(entries))
    picture = file.with_suffix(".svg")
    chart.draw(bars(entries), picture)
    _progress(f"wrote {file} and {picture}")


def _tell_missed(entries: list[Entry]) -> int:
    """Say which goals were missed; return how many."""
    missed = missed_goals(entries)
    for entry, figures, goal in missed:
        _progress(
            f"goal missed in {entry.result.letter}, {figures.title}: {goal_text(goal)} is"
            f" {spread_text(goal.ratio(figures.runs))}, wanted {wanted_text(goal)}"
        )
    return len(missed)


def _progress(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(benchmarks)
    app(prog_name="python -m benchmarks")


if __name__ == "__main__":
    main()
