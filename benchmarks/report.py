"""What one command measured, as a JSON file, and several files as one report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from benchmarks.machine import Machine
from benchmarks.scenario import Figures, Goal


class ReportError(Exception):
    """Results cannot be read, or do not belong together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one scenario found.

    Attributes:
        letter: Of the scenario.
        title: Of the scenario.
        figures: For each load.
    """

    letter: str
    title: str
    figures: Sequence[Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what a scenario was measured.

    Attributes:
        machine: Where.
        date: When, ISO 8601.
        commit: Of what.
        full: Whether with full loads.
        rounds: Runs of each contestant.
    """

    machine: Machine
    date: str
    commit: str
    full: bool
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one command measured.

    Attributes:
        conditions: Under what.
        results: Of each scenario.
    """

    conditions: Conditions
    results: Sequence[Result]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One scenario of a report.

    Attributes:
        conditions: Under what it was measured.
        result: What it found.
    """

    conditions: Conditions
    result: Result


def save(measured: Measured, file: Path) -> None:
    """Write a file; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.encode(measured) + b"\n")


def load(file: Path) -> Measured:
    """Read a file.

    Raises:
        ReportError: If it is not there, or was not written by :func:`save`.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Measured)
    except (OSError, msgspec.DecodeError) as error:
        raise ReportError(f"{file}: {error}") from error


def merge(measurements: Sequence[Measured]) -> list[Entry]:
    """Return the scenarios of several files by letter; a later file's replace an earlier one's.

    Raises:
        ReportError: As :func:`machine_of`.
    """
    entries: dict[str, Entry] = {}
    for measured in measurements:
        for result in measured.results:
            entries[result.letter] = Entry(conditions=measured.conditions, result=result)
    ordered = [entries[letter] for letter in sorted(entries)]
    if ordered:
        machine_of(ordered)
    return ordered


def machine_of(entries: Sequence[Entry]) -> Machine:
    """Return where at least one scenario was measured, with the versions of all that took part.

    A peer that had not been installed yet is missing in earlier results, which is no difference.

    Raises:
        ReportError: If they were measured on different machines, or with different versions.
    """
    first = entries[0].conditions.machine
    versions: dict[str, str] = {}
    for machine in (entry.conditions.machine for entry in entries):
        versions = {**machine.versions, **versions}
        if replace(machine, versions=first.versions) != first:
            raise ReportError("these results are of different machines; measure again")
    for machine in (entry.conditions.machine for entry in entries):
        for name, version in machine.versions.items():
            if versions[name] != version:
                raise ReportError(f"these results are of {name} {versions[name]} and {version}")
    return replace(first, versions=versions)


def missed_goals(entries: Sequence[Entry]) -> list[tuple[Entry, Figures, Goal]]:
    """Return the goals that were not met."""
    return [
        (entry, figures, goal)
        for entry in entries
        for figures in entry.result.figures
        for goal in figures.goals
        if not goal.met(figures.runs)
    ]


def ours(figures: Figures) -> str:
    """Return the contestant that others are compared with: the first goal's, or the first."""
    return figures.goals[0].ours if figures.goals else next(iter(figures.runs))
