"""Plot the confusion matrix and the most confident mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from mlpconv.errors import UsageError
from mlpconv.plots.style import ACCENT, BASE, GOOD, INK, QUIET, bare, new_figure, picture, share, short, styled

__all__ = ["confusion", "mistakes"]

MAX_COUNTS = 20  # classes; up to here each cell shows its count
MAX_LABELS = 40  # class names on an axis
COLUMNS = 6
BLUES = LinearSegmentedColormap.from_list("calm blues", ["#ffffff", "#d9e8f3", "#7fb3d5", BASE, "#08306b"])


@styled
def confusion(matrix: npt.ArrayLike, classes: Sequence[str]) -> Figure:
    """Plot a (K, K) matrix of counts, rows true and columns predicted, coloured by the fraction of the row.

    Raises UsageError if the matrix is not (K, K) for K classes.
    """
    counts = np.asarray(matrix)
    K = len(classes)
    if counts.shape != (K, K) or not K:
        raise UsageError(f"Expected a matrix of shape ({K}, {K}) for {K} classes, got {counts.shape}.")
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = min(max(2.6 + 0.34 * K, 3.4), 8.6)
    figure = new_figure(side + (1.0 if K > MAX_COUNTS else 0.0), side, layout="compressed")
    axes = figure.add_subplot()
    # Mistakes are a few percent of a row; the square root keeps them visible beside the diagonal.
    image = axes.imshow(shares, cmap=BLUES, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    _name_axes(axes, classes)
    if K <= MAX_COUNTS:
        _write_counts(axes, counts, shares, side)
    else:
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, shrink=0.6, ticks=[0, 0.05, 0.25, 0.5, 1])
        bar.set_ticklabels(["0", "5 %", "25 %", "50 %", "100 %"])
        bar.set_label("fraction of the true class")
        bar.outline.set_visible(False)
    return figure


def _name_axes(axes: Axes, classes: Sequence[str]) -> None:
    K = len(classes)
    step = max(1, math.ceil(K / MAX_LABELS))
    shown = range(0, K, step)
    names = [short(classes[k], 16) for k in shown]
    size = 9 if K <= 20 else 7
    vertical = max(len(name) for name in names) * K > 60
    axes.set_xticks(shown, names, rotation=90 if vertical else 0, fontsize=size)
    axes.set_yticks(shown, names, fontsize=size)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(QUIET)
    axes.set_xlabel("predicted" if step == 1 else f"predicted (1 in {step} classes is labelled)")
    axes.set_ylabel("true")
    if K <= MAX_COUNTS:
        axes.set_xticks(np.arange(K - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(K - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, counts: npt.NDArray[Any], shares: npt.NDArray[np.float64], inches: float) -> None:
    K = len(counts)
    digits = max(len(str(counts.max())), 2)
    size = min(10.0, inches * 58 / (K * 0.85 * digits))  # points that fit in a cell
    for row, column in np.argwhere(counts > 0):
        colour = "white" if shares[row, column] > 0.3 else INK
        weight = "bold" if row == column else "normal"
        axes.text(
            column, row, f"{counts[row, column]:d}", ha="center", va="center", color=colour, size=size, weight=weight
        )


@styled
def mistakes(
    images: Sequence[npt.ArrayLike],
    true: Sequence[str | int],
    predicted: Sequence[str | int],
    confidence: Sequence[float],
    names: Sequence[str | None] | None = None,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Plot misclassified uint8 images (C, H, W) with their predicted and true classes.

    `true` and `predicted` are class names, or indices into `classes`; `names` are the files of the images. Raises
    UsageError if the lengths differ.
    """
    lengths = {len(images), len(true), len(predicted), len(confidence), len(images if names is None else names)}
    if len(lengths) > 1:
        raise UsageError(
            f"Images, labels, confidences and names differ in length: {sorted(lengths)}. Give one of each per image."
        )
    if not len(images):
        return _no_mistakes()
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    with_files = names is not None and any(names)
    figure = new_figure(max(1.55 * columns, 3.1), (2.2 if with_files else 2.0) * rows, layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for index, axes in enumerate(grid):
        bare(axes)
        if index >= len(images):
            continue
        _show(axes, picture(images[index]))
        guess, truth = (short(_name(value[index], classes), 15) for value in (predicted, true))
        heading = f"{guess}, {share(confidence[index])}"
        axes.set_title(heading, fontsize=8.5, color=ACCENT, fontweight="normal", loc="center", pad=16)
        below = {"transform": axes.transAxes, "ha": "center", "va": "bottom", "fontsize": 8.5, "color": GOOD}
        axes.text(0.5, 1.035, f"true: {truth}", **below)
        if with_files and names is not None:
            axes.set_xlabel(short(names[index] or "", 22), fontsize=7.5, labelpad=3)
    return figure


def _name(value: str | int, classes: Sequence[str] | None) -> str:
    return classes[int(value)] if classes is not None and not isinstance(value, str) else str(value)


def _show(axes: Axes, image: npt.NDArray[np.uint8]) -> None:
    """Show an image; small ones without interpolation."""
    axes.imshow(image, interpolation="nearest" if max(image.shape[:2]) < 64 else "antialiased")


def _no_mistakes() -> Figure:
    figure = new_figure(4, 1.2)
    figure.text(0.5, 0.5, "No mistakes.", ha="center", va="center", color=QUIET)
    return figure
