from pathlib import Path

import pytest

from benchmarks.bars import bars
from benchmarks.chart import draw
from support.bench_figures import FASTER, QUICKER, entry, figures


def test_each_goal_is_drawn_and_the_rate_beside_each_other_contestant() -> None:
    drawn = bars([entry(figures(goals=[FASTER, QUICKER]))])
    assert [(bar.label, bar.wanted) for bar in drawn] == [
        ("Dynamo", 4),
        ("Dynamo (p50)", 0.8),
        ("raw", None),
    ]
    assert {bar.group for bar in drawn} == {"b  one stream"}


def test_above_one_is_better_whatever_the_metric() -> None:
    rate, p50, raw = bars([entry(figures(goals=[FASTER, QUICKER]))])
    assert (rate.ratio.low, rate.ratio.median, rate.ratio.high) == (4.5, 5, 6)
    assert p50.ratio.median == pytest.approx(1 / 1.2)
    assert raw.ratio.median == 0.5


def test_a_contestant_without_the_goals_metric_is_left_out() -> None:
    drawn = bars([entry(figures(goals=[QUICKER]))])
    assert [bar.label for bar in drawn] == ["Dynamo (p50)"]


def test_the_same_figures_make_the_same_file(tmp_path: Path) -> None:
    drawn = bars([entry(figures())])
    for name in ("one.svg", "two.svg"):
        draw(drawn, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
