"""Figures as Markdown. No I/O."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, TypeVar

from benchmarks.measurement import Run, Spread, paired_ratio
from benchmarks.report import Entry, machine_of, ours
from benchmarks.scenario import Figures, Goal, Metric

_NONE: Final = "-"
_T = TypeVar("_T")
_SMALL: Final = 100  # below it three digits say more than a whole number
_ROLES: Final = ("worker", "client", "server")
_METRICS: Final = {
    Metric.RATE: "rate",
    Metric.P50: "p50",
    Metric.P99: "p99",
    Metric.WORKER_MEMORY: "memory of the worker",
}


def markdown(entries: Sequence[Entry]) -> str:
    """Return the measured part of the document; empty if there is nothing to show."""
    if not entries:
        return ""
    lines = [*conditions_lines(entries), "", *goal_lines(entries)]
    for entry in entries:
        lines += ["", f"### {entry.result.letter}: {entry.result.title}"]
        for figures in entry.result.figures:
            lines += ["", f"**{figures.title}**", "", *figures_lines(figures)]
        notes = _distinct(note for figures in entry.result.figures for note in _notes(figures))
        lines += ["", *(f"* {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def conditions_lines(entries: Sequence[Entry]) -> list[str]:
    """Return what the figures were measured on, and when each scenario was."""
    machine = machine_of(entries)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    hardware = f"{machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.1f} GiB of memory"
    lines = [
        f"* Machine: {hardware}, {machine.system}.",
        f"* Versions: {versions}.",
    ]
    for conditions in _distinct(entry.conditions for entry in entries):
        letters = ", ".join(e.result.letter for e in entries if e.conditions == conditions)
        loads = "full loads" if conditions.full else "short loads"
        when = datetime.fromisoformat(conditions.date).date()
        lines.append(
            f"* {letters}: measured on {when}, commit {conditions.commit}, {loads},"
            f" rounds: {conditions.rounds}."
        )
    return lines


def _distinct(things: Iterable[_T]) -> list[_T]:
    found: list[_T] = []
    for thing in things:
        if thing not in found:
            found.append(thing)
    return found


def goal_lines(entries: Sequence[Entry]) -> list[str]:
    """Return the table of all goals."""
    rows = [
        [
            entry.result.letter,
            f"{figures.title}: {goal_text(goal)}",
            wanted_text(goal),
            spread_text(goal.ratio(figures.runs)),
            "met" if goal.met(figures.runs) else "**not met**",
        ]
        for entry in entries
        for figures in entry.result.figures
        for goal in figures.goals
    ]
    return _table(["", "ratio", "wanted", "median (min to max)", ""], rows, left=2)


def goal_text(goal: Goal) -> str:
    """Say what is divided by what."""
    return f"{_METRICS[goal.metric]}, {goal.ours} ÷ {goal.peer}"


def wanted_text(goal: Goal) -> str:
    """Say between which bounds the ratio is to be."""
    bounds = ((goal.at_least, "at least"), (goal.at_most, "at most"))
    return ", ".join(f"{word} {bound:g}" for bound, word in bounds if bound is not None)


def figures_lines(figures: Figures) -> list[str]:
    """Return the table of one load: a row for each contestant."""
    every = [run for runs in figures.runs.values() for run in runs]
    first = ours(figures)
    singular = figures.unit.removesuffix("s")
    columns = ["", f"{figures.unit}/s", f"÷ {first}"]
    latencies = any(run.latencies for run in every)
    columns += ["p50", "p99"] if latencies else []
    roles = [role for role in _ROLES if any(role in run.cpu for run in every)]
    columns += [f"CPU µs/{singular}, {role}" for role in roles]
    memory = any(goal.metric is Metric.WORKER_MEMORY for goal in figures.goals)
    columns += [_METRICS[Metric.WORKER_MEMORY]] if memory else []
    rows: list[list[str]] = []
    for name, runs in figures.runs.items():
        row = [name, spread_text(Spread.of([run.rate for run in runs]))]
        row.append(_NONE if name == first else _ratio_text(runs, figures.runs[first]))
        if latencies:
            row += [_latency(runs, 50), _latency(runs, 99)]
        row += [_cpu(runs, role) for role in roles]
        row += [_memory(runs)] if memory else []
        rows.append(row)
    return _table(columns, rows, left=1)


def _notes(figures: Figures) -> list[str]:
    """Return what a reader of a load's table has to know."""
    if not figures.latency:
        return [*figures.notes]
    what = figures.latency.replace("seconds", "time", 1)
    return [f"p50 and p99: {what}.", *figures.notes]


def _ratio_text(theirs: Sequence[Run], mine: Sequence[Run]) -> str:
    return spread_text(paired_ratio([run.rate for run in theirs], [run.rate for run in mine]))


def _latency(runs: Sequence[Run], percent: float) -> str:
    taken = [run.percentile(percent) for run in runs if run.latencies]
    return f"{number_text(Spread.of(taken).median * 1e3)} ms" if taken else _NONE


def _cpu(runs: Sequence[Run], role: str) -> str:
    taken = [run.cpu_per_unit(role) for run in runs if role in run.cpu]
    return number_text(Spread.of(taken).median * 1e6) if taken else _NONE


def _memory(runs: Sequence[Run]) -> str:
    taken = [Metric.WORKER_MEMORY.of(run) for run in runs]
    return f"{Spread.of(taken).median / 2**20:,.0f} MiB"


def spread_text(spread: Spread) -> str:
    """Return a median with its smallest and largest figure."""
    median, low, high = map(number_text, (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def number_text(figure: float) -> str:
    """Return a figure with three digits, or as a whole number."""
    return f"{figure:.3g}" if abs(figure) < _SMALL else f"{figure:,.0f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return a Markdown table; columns after the first ``left`` are aligned to the right."""
    marks = ["---" if number < left else "---:" for number in range(len(columns))]
    return [f"| {' | '.join(cells)} |" for cells in (columns, marks, *rows)]
