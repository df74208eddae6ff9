# pyright: reportUnknownMemberType=false
# (many parameters of matplotlib's functions have no types)
"""Ratios as a chart.

The same figures make the same file, byte for byte. The background is transparent and the text
a grey that can be read on white and on black.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.bars import Bar
from benchmarks.table import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

_TEXT: Final = "#7a828c"
_FAINT: Final = "#7a828c40"
_FASTER: Final = "#2a9d8f"
_SLOWER: Final = "#e07a3f"
_ROW: Final = 0.27  # inches
_ABOVE: Final = 0.1
_BELOW: Final = 0.6  # for the axis
_WIDTH: Final = 11.0
_TICKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_STYLE: Final[dict["RcKeyType", str | float]] = {
    "svg.hashsalt": "dialback",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
}


def draw(drawn: Sequence[Bar], file: Path) -> None:
    """Draw at least one bar into an SVG file (or PNG, by its name)."""
    rows = len(drawn) + len({bar.group for bar in drawn})
    with mpl.rc_context(_STYLE):
        height = _ABOVE + _ROW * rows + _BELOW
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_axes((0.5, _BELOW / height, 0.45, _ROW * rows / height))
        _set_up(axes, drawn, rows)
        row, group = 0, ""
        for bar in drawn:
            if bar.group != group:
                group = bar.group
                figure.text(
                    0.01,
                    1 - (_ABOVE + _ROW * (row + 0.6)) / height,
                    group,
                    weight="bold",
                    va="center",
                )
                row += 1
            _draw_bar(axes, row, bar)
            row += 1
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, transparent=True, metadata=metadata, dpi=110)


def _set_up(axes: "Axes", drawn: Sequence[Bar], rows: int) -> None:
    axes.set_xscale("log")
    low = min(min(bar.ratio.low, bar.wanted or 1, 1) for bar in drawn)
    high = max(max(bar.ratio.high, bar.wanted or 1, 1) for bar in drawn)
    axes.set_xlim(low / 1.3, high * 1.9)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_times))
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.axvline(1, color=_TEXT, linewidth=1.1)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("times as good as the other one (log scale); a triangle is the goal")


def _times(value: float, _position: object) -> str:
    return f"{value:g}x"


def _draw_bar(axes: "Axes", row: int, bar: Bar) -> None:
    colour = _FASTER if bar.ratio.median >= 1 else _SLOWER
    axes.plot([1, bar.ratio.median], [row, row], color=colour, linewidth=1.2, alpha=0.5)
    axes.plot(
        [bar.ratio.low, bar.ratio.high],
        [row, row],
        color=colour,
        linewidth=4.5,
        alpha=0.55,
        solid_capstyle="butt",
    )
    axes.plot([bar.ratio.median], [row], color=colour, marker="o", markersize=5.5)
    if bar.wanted is not None:
        axes.plot([bar.wanted], [row + 0.3], color=_TEXT, marker="^", markersize=4.5)
    _label(axes, row, bar.label)
    axes.annotate(
        f"{number_text(bar.ratio.median)}x",
        (max(bar.ratio.high, bar.wanted or 0, 1), row),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
    )


def _label(axes: "Axes", row: int, text: str) -> None:
    axes.annotate(
        text,
        (0, row),
        xycoords=("axes fraction", "data"),
        xytext=(-8, 0),
        textcoords="offset points",
        ha="right",
        va="center",
    )
