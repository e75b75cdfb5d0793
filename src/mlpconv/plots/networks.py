"""Plot what every network of an experiment scored, run by run, on each data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, INK, new_figure, styled

__all__ = ["networks"]

ROW, FRAME = 0.45, 0.8  # inches
CURVE_HEIGHT = 2.5


@styled
def networks(panels: Mapping[str, Sequence[Mapping[str, Any]]], label: str) -> Figure:
    """Plot the networks of each panel (one per data set): a small dot per run, a large one for the mean.

    Each network has `name`, `values`, `treatment` (drawn in the other colour) and `at`: a number places the networks on
    a curve, None on lines below each other. `label` names the values. Raises UsageError if there is no network.
    """
    shown = {name: rows for name, rows in panels.items() if rows}
    if not shown:
        raise UsageError("There are no networks to plot: run the claim on a data set first.")
    curve = all(row["at"] is not None for rows in shown.values() for row in rows)
    most = max(map(len, shown.values()))
    figure = new_figure(6.4, CURVE_HEIGHT if curve else FRAME + ROW * most)
    columns = figure.subplots(1, len(shown), squeeze=False, sharey=not curve)[0]
    for axes, (name, rows) in zip(columns, shown.items(), strict=True):
        (_curve if curve else _lines)(axes, rows)
        axes.set_title(name)
    if curve:
        columns[0].set_ylabel(label)
    else:
        first = next(iter(shown.values()))
        columns[0].set_yticks(range(len(first)), [row["name"] for row in first], fontsize=10, color=INK)
        columns[0].set_xlabel(label, loc="left")
    return figure


def _lines(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw one line per network: its runs, its mean, and the mean as a number."""
    for position, row in enumerate(rows):
        colour, values = (ACCENT if row["treatment"] else BASE), np.asarray(row["values"])
        count = len(values)
        spread = 0.26 * (np.arange(count) * 5 % count / count - 0.5)  # so that equal values stay visible
        axes.plot(values, position + 0.14 + spread, "o", color=colour, markersize=2.8, alpha=0.35, markeredgewidth=0)
        axes.plot(values.mean(), position + 0.14, "o", color=colour, markersize=7, markeredgecolor="white", zorder=4)
        axes.text(values.mean(), position - 0.24, _number(values.mean()), fontsize=9, color=colour, ha="center",
                  va="center")  # fmt: skip
    axes.set_ylim(len(rows) - 0.55, -0.5)
    axes.margins(x=0.12)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x")


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the means over a logarithmic axis, with a dot per run."""
    places = [row["at"] for row in rows]
    for place, row in zip(places, rows, strict=True):
        count = len(row["values"])
        axes.plot([place] * count, row["values"], "o", color=BASE, markersize=2.8, alpha=0.3, markeredgewidth=0)
    means = [float(np.mean(row["values"])) for row in rows]
    axes.plot(places, means, "o-", color=BASE, markersize=6, markeredgecolor="white")
    for place, mean in zip(places, means, strict=True):
        axes.annotate(_number(mean), (place, mean), (0, 8), textcoords="offset points", fontsize=9, ha="left")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(rows[0]["name"].split(" ", 1)[1])
    axes.set_ylim(0, 1.12 * max(max(row["values"]) for row in rows))
    axes.margins(x=0.12)
    axes.grid(axis="y")
