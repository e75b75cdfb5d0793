"""Plot error against cost: multiply-adds and measured times, a point per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, GOOD, INK, new_figure, styled

__all__ = ["error_cost"]

MARKS = ((ACCENT, "o"), (BASE, "s"), ("#56b4e9", "D"), (GOOD, "^"), ("#e69f00", "v"), ("#cc79a7", "P"), (INK, "X"))
ROW, LEGEND = 2.15, 0.62  # inches


@styled
def error_cost(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Plot the networks of each panel (one per data set) in a row: test error against each kind of cost.

    Each network has `name`, `error` and `deviation` (percent) and `costs`: by label of the axis a number, or a mapping
    with `median`, `low` and `high`. The first network is the treatment. Raises UsageError if there is none.
    """
    shown = {name: networks for name, networks in panels.items() if networks}
    if not shown:
        raise UsageError("There are no networks to plot: run the claim on a data set first.")
    kinds = list(dict.fromkeys(kind for networks in shown.values() for net in networks for kind in net["costs"]))
    figure = new_figure(6.4, ROW * len(shown) + LEGEND)
    grid = figure.subplots(len(shown), len(kinds), squeeze=False, sharey="row")
    for row, (name, networks) in zip(grid, shown.items(), strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            _points(axes, kind, networks)
            axes.set_xlabel(kind, fontsize=8.5)
        row[0].set_title(name)
        row[0].set_ylabel("test error, %")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _points(axes: Axes, kind: str, networks: Sequence[Mapping[str, Any]]) -> None:
    """Draw one point per network: its standard deviation as a vertical line, the quartiles of a time as a level one."""
    places = []
    for network, (colour, marker) in zip(networks, MARKS, strict=False):
        cost = network["costs"].get(kind)
        if cost is None:
            continue
        low, middle, high = (cost["low"], cost["median"], cost["high"]) if isinstance(cost, Mapping) else [cost] * 3
        places.append(high)
        error, deviation = network["error"], network["deviation"]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.2, "alpha": 0.55, "zorder": 2}
        axes.plot([middle, middle], [error - deviation, error + deviation], **style)
        axes.plot([low, high], [error, error], **style)
        axes.plot(
            middle, error, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.6,
            label=network["name"], linestyle="none", zorder=3,
        )  # fmt: skip
    axes.set_xlim(0, 1.15 * max(places, default=1.0))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y")
    axes.tick_params(labelsize=8)
