"""Finds the scenarios, and runs some of them."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

from benchmarks.report import Result
from benchmarks.scenario import Lab, Scenario

_FOLDER: Final = Path(__file__).parent / "scenarios"


def scenarios() -> list[Scenario]:
    """Return the ``SCENARIOS`` of the modules of ``benchmarks.scenarios``, by letter.

    Raises:
        ValueError: If two have the same letter.
    """
    found: dict[str, Scenario] = {}
    for module in pkgutil.iter_modules([str(_FOLDER)], "benchmarks.scenarios."):
        offered = getattr(importlib.import_module(module.name), "SCENARIOS", ())
        for scenario in cast("Sequence[Scenario]", offered):
            if scenario.letter in found:
                raise ValueError(f"two scenarios have the letter {scenario.letter}")
            found[scenario.letter] = scenario
    return [found[letter] for letter in sorted(found)]


def chosen(known: Sequence[Scenario], letters: str) -> list[Scenario]:
    """Return the scenarios of these letters; all of them for none.

    Raises:
        ValueError: If there is no such scenario.
    """
    unknown = sorted(set(letters) - {scenario.letter for scenario in known})
    if unknown:
        every = "".join(scenario.letter for scenario in known)
        raise ValueError(f"no scenario {', '.join(unknown)}; there are {every}")
    return [scenario for scenario in known if not letters or scenario.letter in letters]


async def measure(
    picked: Sequence[Scenario], lab: Lab, *, done: Callable[[Result], None]
) -> list[str]:
    """Run scenarios one after the other; one that fails does not keep the others from running.

    Args:
        picked: What to run.
        lab: How much.
        done: Given each result as soon as it is there.

    Returns:
        The letters of those that failed; what went wrong was told to ``lab.progress``.
    """
    failed: list[str] = []
    for scenario in picked:
        lab.progress(f"{scenario.letter}: {scenario.title}")
        try:
            figures = await scenario.measure(lab)
        except Exception as error:  # whatever it is, the rest is worth having
            lab.progress(f"{scenario.letter} failed: {type(error).__name__}: {error}")
            failed.append(scenario.letter)
        else:
            done(Result(letter=scenario.letter, title=scenario.title, figures=figures))
    return failed
