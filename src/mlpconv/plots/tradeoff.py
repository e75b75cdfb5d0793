"""Plot the error of a factorized network against its multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, GOOD, QUIET, new_figure, short, styled

__all__ = ["tradeoff"]

CURVES = {"activations": ("by activations, not fitted", ACCENT), "weights": ("by weights", BASE)}
LOG_FROM = 12.0
"""Ratio of largest to smallest error from which the axis is logarithmic."""
BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}


@styled
def tradeoff(report: Mapping[str, Any]) -> Figure:
    """Plot error (%) against the multiply-adds kept (%) from a `factorize` report's to_dict().

    The error is the classification error if it was measured, otherwise the fraction of the outputs' variance lost. The
    dot is the factorized network. Raises UsageError for a report without a curve.
    """
    details = report.get("details", {})
    points = details.get("curve") or []
    if not points:
        raise UsageError("The report has no curve: call factorize with curve=True, and include the costly layers.")
    kind = "classes" if "classes" in details["error"]["after"] else "output"
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    axes.set_title(f"{short(report['model'], 30)}, factorized")
    curves = [_curve(axes, points, by, kind) for by in CURVES if by in points[0]]
    result = 100 * report["after"]["macs"] / report["before"]["macs"], 100 * details["error"]["after"][kind]
    before = 100 * details["error"]["before"][kind]
    axes.plot(*result, "o", color=GOOD, markersize=8, markeredgecolor="white", zorder=5, label="this network, fitted")
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top", "color": GOOD, "bbox": BOX}
    axes.annotate(f"{result[1]:.3g} %", result, (0, -9), **style)
    if kind == "classes":
        axes.axhline(before, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0, label="the original")
    _scale(axes, [value for curve in curves for value in curve] + [result[1]] + [before] * (kind == "classes"))
    axes.set_ylabel("classification error, %" if kind == "classes" else "lost variance of the outputs, %")
    axes.set_xlabel("multiply-adds kept, %")
    axes.set_xlim(0, 102)
    axes.grid(axis="y")
    axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


def _curve(axes: Axes, points: Sequence[Mapping[str, Any]], by: str, kind: str) -> list[float]:
    """Plot the curve of one choice of directions; return its errors in percent."""
    name, colour = CURVES[by]
    errors = [100 * point[by][kind] for point in points]
    axes.plot([100 * point["share"] for point in points], errors, marker="o", markersize=4, color=colour, label=name)
    return errors


def _scale(axes: Axes, errors: Sequence[float]) -> None:
    """Start the error axis at zero, or make it logarithmic for errors of very different size."""
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
