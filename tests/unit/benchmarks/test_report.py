from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import ReportError, load, machine_of, merge, missed_goals, ours, save
from benchmarks.table import markdown
from support.bench_figures import FASTER, MACHINE, entry, figures, measured


def test_what_was_saved_can_be_read_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    save(measured("b"), file)
    read = load(file)
    assert markdown(merge([read])) == markdown(merge([measured("b")]))
    save(read, file)
    assert load(file) == read


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_a_file_of_something_else_is_an_error(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ReportError, match=r"results\.json"):
        load(file)


def test_a_later_file_replaces_scenarios_of_an_earlier_one() -> None:
    merged = merge([measured("c", "b"), measured("b", full=False)])
    assert [(one.result.letter, one.conditions.full) for one in merged] == [
        ("b", False),
        ("c", True),
    ]


def test_results_of_two_machines_are_no_report() -> None:
    other = replace(MACHINE, cores=64)
    with pytest.raises(ReportError, match="different machines"):
        merge([measured("b"), measured("c", machine=other)])


def test_results_of_two_versions_are_no_report() -> None:
    other = replace(MACHINE, versions={"Python": "3.13.1"})
    with pytest.raises(ReportError, match=r"Python 3\.11\.7 and 3\.13\.1"):
        merge([measured("b"), measured("c", machine=other)])


def test_a_peer_that_was_installed_later_is_no_difference() -> None:
    later = replace(MACHINE, versions={**MACHINE.versions, "peer": "1.0"})
    merged = merge([measured("b"), measured("c", machine=later)])
    assert machine_of(merged).versions == {"Python": "3.11.7", "peer": "1.0"}


def test_missed_goals_are_found() -> None:
    high = replace(FASTER, at_least=6)
    one = entry(figures(goals=[FASTER, high]))
    assert [goal for _, _, goal in missed_goals([one])] == [high]


def test_others_are_compared_with_the_contestant_of_the_first_goal_or_the_first() -> None:
    assert ours(figures(goals=[replace(FASTER, ours="raw")])) == "raw"
    assert ours(figures(goals=[])) == "dialback"
