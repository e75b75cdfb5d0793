"""Learning curves: loss, error and learning rate over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, INK, QUIET, new_figure, styled

__all__ = ["curves"]

Floats = npt.NDArray[np.float64]

LOG_RATIO = 12.0  # largest to smallest value from which the axis is logarithmic


@styled
def curves(history: Sequence[Mapping[str, Any]], kept: int | None = None) -> Figure:
    """Plot training and validation loss and error (%) over the epochs, and the learning rate below.

    Args:
        history: one mapping per epoch with the columns of metrics.csv; missing, empty and None values are skipped.
        kept: the epoch to mark, that of the model file; None marks the lowest validation error.

    Raises:
        UsageError: if the history is empty.
    """
    if not history:
        raise UsageError("The history is empty: train at least one epoch before plotting.")
    epochs = _column(history, "epoch")
    epochs = np.where(np.isnan(epochs), np.arange(1, len(history) + 1), epochs)
    rates = _column(history, "lr")
    strip = bool(np.isfinite(rates).any())
    figure = new_figure(9, 4.1 if strip else 3.4)
    grid = figure.add_gridspec(2 if strip else 1, 2, height_ratios=[1, 0.2] if strip else [1])
    loss, error = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    losses = [_column(history, f"{split}_loss") for split in ("train", "val")]
    _panel(loss, "Loss", epochs, *losses)
    errors = [100 * (1 - _column(history, f"{split}_accuracy")) for split in ("train", "val")]
    _panel(error, "Error, %", epochs, *errors)
    _mark(error, epochs, errors[1], kept)
    if strip:
        _rate_strip(figure.add_subplot(grid[1, :]), epochs, rates)
    return figure


def _column(history: Sequence[Mapping[str, Any]], key: str) -> Floats:
    values = (row.get(key) for row in history)
    return np.array([math.nan if value in (None, "") else float(value) for value in values])


def _panel(axes: Axes, title: str, epochs: Floats, train: Floats, val: Floats) -> None:
    axes.set_title(title)
    axes.grid(axis="y")
    _scale(axes, np.concatenate([train, val]))
    lines = [("training", train, BASE), ("validation", val, ACCENT)]
    for name, values, colour in lines:
        valid = np.isfinite(values)
        if valid.any():
            axes.plot(epochs[valid], values[valid], color=colour, label=name, marker="o" if valid.sum() < 3 else None)
    if axes.lines:
        axes.legend(frameon=False, loc="best", labelcolor="linecolor", handlelength=1.2, fontsize=9)
    _epoch_axis(axes, epochs)
    axes.set_xlabel("epoch")


def _scale(axes: Axes, values: Floats) -> None:
    """Scale the axis linearly from zero, or logarithmically if the values span a large ratio."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return
    if positive.max() / positive.min() < LOG_RATIO:
        axes.set_ylim(0, 1.06 * positive.max())
        return
    axes.set_yscale("log", nonpositive="clip")  # an error of 0 runs off the bottom instead of leaving a gap
    axes.set_ylim(0.8 * positive.min(), 1.25 * positive.max())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    decades = math.log10(positive.max() / positive.min())
    if decades < 2.5:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def _mark(axes: Axes, epochs: Floats, error: Floats, kept: int | None) -> None:
    """Mark the epoch `kept`, or that of the lowest error."""
    if not np.isfinite(error).any():
        return
    rows = np.flatnonzero((epochs == kept) & np.isfinite(error))
    row = int(rows[0]) if len(rows) else int(np.nanargmin(error))
    axes.plot(epochs[row], error[row], "o", color=ACCENT, markersize=6, markeredgecolor="white", zorder=5)
    label = f"{'kept: ' if len(rows) else 'lowest '}validation error {error[row]:.3g}%, epoch {epochs[row]:.0f}"
    axes.set_title(label, loc="right", fontsize=9, color=ACCENT, fontweight="normal")


def _rate_strip(axes: Axes, epochs: Floats, rates: Floats) -> None:
    valid = np.isfinite(rates)
    top = float(rates[valid].max())
    axes.fill_between(epochs[valid], rates[valid], color=QUIET, alpha=0.18, linewidth=0)
    axes.plot(epochs[valid], rates[valid], color=QUIET, linewidth=1.2, marker="o" if valid.sum() < 3 else None)
    axes.set_ylim(0, 1.15 * top if top > 0 else 1)
    axes.set_yticks([top], [f"{top:.3g}"])
    axes.set_title("Learning rate", fontsize=9, color=INK, fontweight="normal", pad=3)
    _epoch_axis(axes, epochs)


def _epoch_axis(axes: Axes, epochs: Floats) -> None:
    low, high = float(epochs.min()), float(epochs.max())
    edge = max((high - low) * 0.02, 0.5 if low == high else 0.0)
    axes.set_xlim(low - edge, high + edge)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
