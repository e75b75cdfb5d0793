"""Plot paired differences with their interval, the margin of no interest, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, GOOD, INK, QUIET, RULE, new_figure, styled

__all__ = ["VERDICT_COLOURS", "paired"]

VERDICT_COLOURS = {
    "proved": GOOD,
    "supported": GOOD,
    "refuted": ACCENT,
    "equivalent": BASE,
    "indicated": QUIET,
    "undecided": QUIET,
}
ROW = 0.78  # inches
BAND = "#e9edf1"
MOST_RATIO = 6


@styled
def paired(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Plot the comparisons of each panel (one per data set): a dot per pair, the mean and its 95 % interval.

    Each comparison has `name`, `differences`, `mean`, `low`, `high`, `margin`, `unit`, `expect` and `verdict`. The grey
    band holds differences smaller than the margin. Raises UsageError if there is no comparison.
    """
    if not any(panels.values()):
        raise UsageError("There are no comparisons to plot: run the claim on a data set first.")
    shown = [(name, group) for name, rows in panels.items() if rows for group in _of_one_scale(rows)]
    heights = [len(rows) * ROW + 0.75 for _, rows in shown]
    figure = new_figure(6.4, sum(heights))
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for (name, rows), panel in zip(shown, axes, strict=True):
        _panel(panel, name, rows)
    return figure


def _of_one_scale(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Split comparisons into groups that one axis can show: each reaches at most six times as far as another."""
    groups: list[list[Mapping[str, Any]]] = []
    for row in rows:
        for group in groups:
            reaches = [_reach(member) for member in (*group, row)]
            if max(reaches) <= MOST_RATIO * min(reaches):
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def _reach(row: Mapping[str, Any]) -> float:
    return float(max(np.abs([*row["differences"], row["low"], row["high"]]).max(), row["margin"]))


def _panel(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    values = np.concatenate([[*row["differences"], row["low"], row["high"], 0.0] for row in rows])
    reach = max(row["margin"] for row in rows)
    low, high = min(values.min(), -1.3 * reach), max(values.max(), 1.3 * reach)
    pad = 0.06 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(len(rows) - 0.42, -0.62)
    for position, row in enumerate(rows):
        _comparison(axes, position, row)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(name)
    axes.set_xlabel(f"first minus second, {rows[0]['unit']}")


def _comparison(axes: Axes, position: int, row: Mapping[str, Any]) -> None:
    colour = VERDICT_COLOURS[row["verdict"]]
    margin, differences = row["margin"], np.asarray(row["differences"])
    axes.fill_between([-margin, margin], position - 0.16, position + 0.34, color=BAND, linewidth=0, zorder=0)
    axes.plot([0, 0], [position - 0.16, position + 0.34], color=INK, linewidth=0.9, zorder=1)
    count = len(differences)
    spread = 0.24 * (np.arange(count) * 5 % count / count - 0.5)  # so that equal differences stay visible
    axes.plot(differences, position + 0.09 + spread, "o", color=colour, markersize=3.4, alpha=0.4, markeredgewidth=0)
    axes.plot([row["low"], row["high"]], [position + 0.09] * 2, color=colour, linewidth=2.4, zorder=3)
    axes.plot(row["mean"], position + 0.09, "o", color=colour, markersize=8, markeredgecolor="white", zorder=4)
    claims = {"lower": "claim: lower", "higher": "claim: higher", "same": "claim: no difference"}[row["expect"]]
    label = textwrap.shorten(row["name"], 62, placeholder="…")
    frame = axes.get_yaxis_transform()
    axes.text(0, position - 0.28, label, transform=frame, fontsize=9, color=INK, va="center")
    axes.text(
        1, position - 0.28, f"{claims} · {row['verdict']}", transform=frame, fontsize=9, color=colour, va="center",
        ha="right",
    )  # fmt: skip
    axes.plot([0, 1], [position - 0.5] * 2, transform=frame, color=RULE, linewidth=0.6, zorder=0)
