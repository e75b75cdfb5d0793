"""Plot the trials of a search: validation error against multiply-adds, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, QUIET, new_figure, styled
from mlpconv.text import counted

__all__ = ["pareto"]

LABELLED = 8  # points of the front that get the number of their trial


@styled
def pareto(trials: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot trials, each with `trial`, `state`, `error` (0 to 1) and `macs`; the front is the step line.

    Completed trials are dots, pruned ones crosses at their lowest error so far. Raises UsageError if none is complete.
    """
    complete = [row for row in trials if row["state"] == "complete"]
    pruned = [row for row in trials if row["state"] == "pruned" and row["error"] is not None]
    if not complete:
        raise UsageError("No trial is complete: there is nothing to plot.")
    front: list[Mapping[str, Any]] = []
    for row in sorted(complete, key=lambda row: (row["macs"], row["error"])):
        if not front or row["error"] < front[-1]["error"]:
            front.append(row)
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    axes.set_title(f"{counted(len(complete), 'network')}, {len(front)} on the Pareto front")
    axes.set_xscale("log")
    axes.plot(*points(complete), "o", color=BASE, markersize=5, alpha=0.55, markeredgewidth=0, label="complete")
    if pruned:
        axes.plot(*points(pruned), "x", color=QUIET, markersize=4, markeredgewidth=1, label="pruned")
    axes.step(*points(front), where="post", color=ACCENT, marker="o", markersize=6, label="Pareto front", zorder=4)
    for row in front[-LABELLED:]:
        place = (row["macs"] / 1e6, 100 * row["error"])
        axes.annotate(str(row["trial"]), place, (4, 5), textcoords="offset points", color=ACCENT, fontsize=9)
    errors = points(complete)[1]
    axes.set_ylim(0, 1.15 * max(errors) or 1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("multiply-adds per image, millions")
    axes.set_ylabel("validation error, %")
    axes.grid(axis="y")
    axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


def points(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return the multiply-adds in millions, and the errors in percent."""
    return [row["macs"] / 1e6 for row in rows], [100 * row["error"] for row in rows]
