"""What a cheaper network loses: error against multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, GOOD, QUIET, new_figure, short, styled

__all__ = ["tradeoff"]

WAYS = {"activations": ("by activations, not fitted", ACCENT), "weights": ("by weights", BASE)}
LOG_FROM = 12.0
"""The span, largest to smallest, from which a linear axis would hide the low end."""
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}


@styled
def tradeoff(report: Mapping[str, Any]) -> Figure:
    """The curve of a `factorize` report's to_dict(): error (%) against the share of the multiply-adds that is left.

    The classification error where it was measured, else the share of the outputs' variance that is lost. The dot is the
    network that was made. Raises UsageError for a report without a curve.
    """
    details = report.get("details", {})
    points = details.get("curve") or []
    if not points:
        raise UsageError("The report has no curve: call factorize with curve=True, and leave it room to cut.")
    kind = "classes" if "classes" in details["error"]["after"] else "output"
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    axes.set_title(f"{short(report['model'], 30)} computed at lower ranks")
    seen = [_line(axes, points, way, kind) for way in WAYS if way in points[0]]
    made = 100 * report["after"]["macs"] / report["before"]["macs"], 100 * details["error"]["after"][kind]
    before = 100 * details["error"]["before"][kind]
    axes.plot(*made, "o", color=GOOD, markersize=8, markeredgecolor="white", zorder=5, label="this network, fitted")
    axes.annotate(
        f"{made[1]:.3g} %", made, (0, -9), textcoords="offset points", ha="center", va="top", color=GOOD, bbox=CLEAR
    )
    if kind == "classes":
        axes.axhline(before, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0, label="the original")
    _scale(axes, [value for line in seen for value in line] + [made[1]] + [before] * (kind == "classes"))
    axes.set_ylabel("classification error, %" if kind == "classes" else "variance of the outputs that is lost, %")
    axes.set_xlabel("multiply-adds that are left, %")
    axes.set_xlim(0, 102)
    axes.grid(axis="y")
    axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


def _line(axes: Axes, points: Sequence[Mapping[str, Any]], way: str, kind: str) -> list[float]:
    """Draw one way to choose directions; returns its errors in per cent."""
    name, colour = WAYS[way]
    errors = [100 * point[way][kind] for point in points]
    axes.plot([100 * point["share"] for point in points], errors, marker="o", markersize=4, color=colour, label=name)
    return errors


def _scale(axes: Axes, errors: Sequence[float]) -> None:
    """From zero where that shows the course, else logarithmic."""
    low, high = min(errors), max(errors)
    if low <= 0 or high / low < LOG_FROM:
        axes.set_ylim(0, 1.08 * high if high > 0 else 1)
        return
    axes.set_yscale("log")
    axes.set_ylim(0.6 * low, 1.3 * high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
