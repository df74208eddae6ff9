import pytest

from benchmarks.measurement import Run, Spread
from benchmarks.report import merge
from benchmarks.scenario import Figures, Goal, Metric
from benchmarks.table import (
    conditions_lines,
    figures_lines,
    goal_lines,
    markdown,
    number_text,
    spread_text,
    wanted_text,
)
from support.bench_figures import FASTER, QUICKER, entry, figures, measured


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0.12345, "0.123"), (1, "1"), (12.345, "12.3"), (123.45, "123"), (1234567.8, "1,234,568")],
)
def test_a_figure_has_three_digits_or_no_fraction(figure: float, text: str) -> None:
    assert number_text(figure) == text


def test_a_median_is_shown_with_what_it_is_the_median_of() -> None:
    assert spread_text(Spread(2, 1, 3000)) == "2 (1 to 3,000)"


def test_goals_say_what_was_wanted_and_whether_it_is_met() -> None:
    assert wanted_text(QUICKER) == "at most 1.25"
    assert goal_lines([entry(figures(goals=[FASTER, QUICKER]))])[2:] == [
        "| b | one stream: rate, dialback ÷ Dynamo | at least 4 | 5 (4.5 to 6) | met |",
        "| b | one stream: p50, dialback ÷ Dynamo | at most 1.25 | 1.2 | met |",
    ]


def test_a_load_has_a_row_for_each_contestant() -> None:
    assert figures_lines(figures()) == [
        "|  | items/s | ÷ dialback | p50 | p99 | CPU µs/item, worker |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| dialback | 1,000 (900 to 1,200) | - | 1.2 ms | 1.2 ms | 10 |",
        "| Dynamo | 200 | 0.2 (0.167 to 0.222) | 1 ms | 1 ms | - |",
        "| raw | 2,000 | 2 (1.67 to 2.22) | - | - | - |",
    ]


def test_conditions_are_said_once_for_all_scenarios_that_share_them() -> None:
    entries = merge([measured("b", "c"), measured("d", full=False)])
    assert conditions_lines(entries) == [
        "* Machine: A Processor, 2 cores, 8.0 GiB of memory, Linux 6.1.",
        "* Versions: Python 3.11.7.",
        "* b, c: measured on 2026-03-04, commit 0123abcd, full loads, rounds: 3.",
        "* d: measured on 2026-03-04, commit 0123abcd, short loads, rounds: 3.",
    ]


def test_nothing_measured_is_nothing_to_show() -> None:
    assert markdown([]) == ""


def test_notes_are_said_once_for_all_loads_of_a_scenario() -> None:
    text = markdown([entry(figures(), figures())])
    assert text.count("**one stream**") == 2
    assert text.endswith("\n\n* p50 and p99: time to the first item.\n* A note.\n")


def test_memory_is_shown_where_it_is_a_goal() -> None:
    run = Run(units=1, seconds=1, memory={"worker": 64 * 2**20})
    flat = Goal(ours="late", peer="early", metric=Metric.WORKER_MEMORY, at_most=1.2)
    runs = {"early": [run], "late": [run]}
    shown = figures_lines(Figures(title="backlog", unit="requests", runs=runs, goals=[flat]))
    assert shown[0] == "|  | requests/s | ÷ late | memory of the worker |"
    assert shown[2] == "| early | 1 | 1 | 64 MiB |"
