"""Draw what a 1x1 convolution does: one picture for each exact claim."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.plots.construction_parts import arrow, canvas, grid, heat, label, neuron, volume, wire
from mlpconv.plots.style import ACCENT, BASE, GOOD, INK, QUIET, styled

__all__ = ["CONSTRUCTIONS", "CONSTRUCTION_CAPTIONS", "construction"]


@styled
def construction(name: str) -> Figure:
    """Draw the construction of an exact claim by its name; raise UsageError for an unknown one."""
    if name not in CONSTRUCTIONS:
        raise UsageError(f"There is no drawing {name!r}; {did_you_mean(name, CONSTRUCTIONS)}")
    return CONSTRUCTIONS[name]()


def _cost() -> Figure:
    figure, axes = canvas(10, 5.6)
    rows = (
        (3.1, ("28 × 28 × 192", "192 filters 1×1", "28 × 28 × 192", "37,056 parameters\n28.9"), (1.3, 1.6, 1.6)),
        (0.45, ("200 × 200 × 50", "20 filters 1×1", "200 × 200 × 20", "1,020 parameters\n40"), (1.5, 0.9, 0.4)),
    )
    for y, (before, filters, after, cost), (side, deep, shallow) in rows:
        volume(axes, 0.7, y, side, deep, column=True)
        volume(axes, 6.6, y, side, shallow, column=True)
        arrow(axes, (3.3, y + 0.8), (6.1, y + 0.8), filters)
        label(axes, 4.7, y + 0.2, f"{cost} million multiply-adds", fontsize=9, color=QUIET)
        label(axes, 1.4, y - 0.25, before, fontsize=9)
        label(axes, 7.4, y - 0.25, after, fontsize=9)
    return figure


def _linear_map() -> Figure:
    figure, axes = canvas(10, 4.4)
    volume(axes, 0.3, 1.2, 1.7, 1.1, column=True)
    volume(axes, 7.6, 1.2, 1.7, 1.1, column=True)
    layers = [(3.4, 4), (4.9, 5), (6.4, 4)]
    heights = {x: np.linspace(0.7, 3.6, count) for x, count in layers}
    for (left, _), (right, _) in pairwise(layers):
        for start in heights[left]:
            for end in heights[right]:
                wire(axes, (left, start), (right, end))
    for x, _ in layers:
        for height in heights[x]:
            neuron(axes, x, height, colour=ACCENT if x != 4.9 else BASE, radius=0.2)
    arrow(axes, (2.55, 2.15), (3.1, 2.15))
    arrow(axes, (6.75, 2.15), (7.45, 2.15))
    label(axes, 4.9, 4.15, "the same MLP at every pixel", fontsize=10, fontweight="bold")
    label(axes, 4.15, 0.2, "1×1 + ReLU", fontsize=9, color=QUIET)
    label(axes, 5.65, 0.2, "1×1 + ReLU", fontsize=9, color=QUIET)
    label(axes, 1.4, 0.85, "channels of one pixel", fontsize=9, color=ACCENT)
    label(axes, 8.5, 0.85, "its new channels", fontsize=9, color=ACCENT)
    return figure


def _glyph() -> npt.NDArray[np.float64]:
    """Return an image (9, 9) of a ring with a tail, which shuffling destroys."""
    y, x = np.mgrid[-4:5, -4:5]
    radius = np.hypot(x, y)
    return np.asarray(np.exp(-((radius - 2.6) ** 2) / 0.8) + 1.0 * ((x == y) & (x > 0)), dtype=np.float64)


def _neighbours() -> Figure:
    figure, axes = canvas(10, 4.3)
    image = _glyph()
    shuffled = np.random.default_rng(3).permutation(image.ravel()).reshape(image.shape)
    for x, picture, text in ((0.4, image, "an image"), (3.0, shuffled, "its pixels, shuffled")):
        heat(axes, picture, x, 1.5, 2.1)
        label(axes, x + 1.05, 1.15, text, fontsize=9)
    label(axes, 2.75, 3.95, "to 1×1s and global average pooling: the same", fontweight="bold", fontsize=9)
    label(axes, 2.8, 0.5, "equal logits, to the last bits", fontsize=9, color=GOOD)
    for x, cells, text, colour in (
        (6.0, [(2, 2)], "1×1 reads this", ACCENT),
        (8.1, [(row, column) for row in (1, 2, 3) for column in (1, 2, 3)], "3×3 reads these", BASE),
    ):
        grid(axes, x, 1.7, 5, 1.6, cells, colour)
        label(axes, x + 0.8, 1.35, text, fontsize=9)
    label(axes, 7.85, 3.95, "for one output pixel", fontweight="bold", fontsize=9)
    return figure


def _one_channel() -> Figure:
    figure, axes = canvas(10, 4.6)
    image = np.random.default_rng(5).random((6, 6))
    heat(axes, image, 0.6, 2.7, 1.5, vmin=-0.3, vmax=2)
    heat(axes, 1.9 * image, 4.3, 2.7, 1.5, vmin=-0.3, vmax=2)
    arrow(axes, (2.4, 3.4), (4.0, 3.4), "× a, + b")
    label(axes, 7.95, 3.4, "6 × 6 × 1: one number\ntimes every pixel,\nthe same picture again", fontsize=9)
    volume(axes, 0.6, 0.3, 1.4, 0.9, column=True)
    heat(axes, _glyph()[1:7, 1:7], 4.3, 0.4, 1.5)
    arrow(axes, (2.6, 1.1), (4.0, 1.1), "Σ w·x + b")
    label(axes, 7.95, 1.1, "6 × 6 × 32: a weighted\nsum of 32 maps, a picture\nthat was in none of them", fontsize=9)
    return figure


def _comparison() -> Figure:
    figure, axes = canvas(10, 3.7)
    y, x = np.mgrid[0:9, 0:9]
    cat = np.exp(-((x - 2.5) ** 2 + (y - 3) ** 2) / 6) + 0.15
    dog = np.exp(-((x - 6) ** 2 + (y - 5) ** 2) / 6) + 0.15
    pictures = (
        (0.4, cat, "cat detected", "Blues"),
        (3.0, dog, "dog detected", "Oranges"),
        (5.9, np.maximum(cat - dog, 0), "relu(cat − dog)", "Greens"),
        (7.95, np.maximum(dog - cat, 0), "relu(dog − cat)", "Greens"),
    )
    for left, picture, text, colours in pictures:
        heat(axes, picture, left, 1.0, 1.75, cmap=colours, vmin=0, vmax=1.15)
        label(axes, left + 0.87, 0.65, text, fontsize=9)
    label(axes, 2.58, 1.85, "−", fontsize=16)
    arrow(axes, (4.9, 1.85), (5.75, 1.85))
    label(axes, 7.7, 3.3, "1×1 and ReLU: more cat, or more dog?", fontweight="bold", fontsize=9)
    label(axes, 2.6, 3.3, "ReLU alone keeps both as they are", fontsize=9, color=QUIET)
    label(
        axes, 5.0, 0.15, "weights (1, −1): positive exactly where there is more cat than dog", fontsize=9, color=QUIET
    )
    return figure


def _dimensions() -> Figure:
    figure, axes = canvas(10, 4.6)
    plot = figure.add_axes((0.1, 0.16, 0.42, 0.7))
    filters = np.arange(1, 33)
    plot.plot(filters, np.minimum(filters, 16), color=BASE)
    plot.axvline(16, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    plot.set(xlabel="filters F", ylabel="dimensions left of C = 16", ylim=(0, 19), xlim=(0, 32))
    plot.text(16.6, 3, "F ≥ C: none lost", fontsize=9, color=GOOD)
    plot.text(1.2, 16.6, "F < C: reduced", fontsize=9, color=ACCENT)
    for row, (weights, text) in enumerate(
        (("all pixels:\nthe same weights", True), ("every filter:\nall channels", False))
    ):
        y = 3.0 - 1.9 * row
        if text:
            grid(axes, 6.1, y - 0.6, 4, 1.5, [(r, c) for r in range(4) for c in range(4)], "#b7d2e8")
        else:
            for index, height in enumerate(np.linspace(y - 0.6, y + 0.8, 4)):
                wire(axes, (6.2, height), (7.5, y + 0.1))
                neuron(axes, 6.2, height, colour=(BASE, ACCENT, GOOD, INK)[index], radius=0.13)
            neuron(axes, 7.5, y + 0.1, "Σ", radius=0.24)
        label(axes, 7.95, y + 0.15, weights, fontsize=9, ha="left")
    return figure


def _fully_connected() -> Figure:
    figure, axes = canvas(10, 4.2)
    grid(axes, 0.5, 1.3, 4, 1.7, [(r, c) for r in range(4) for c in range(4)], "#b7d2e8")
    label(axes, 1.35, 0.95, "a 4 × 4 image", fontsize=9)
    arrow(axes, (2.4, 2.15), (3.5, 2.15), "4×4, then 1×1")
    grid(axes, 3.8, 1.9, 1, 0.5, [(0, 0)], ACCENT)
    label(axes, 4.05, 1.55, "1 × 1", fontsize=9)
    grid(axes, 5.5, 0.9, 6, 2.5, [(r, c) for r in range(1, 5) for c in range(2, 6)], "#b7d2e8")
    label(axes, 6.75, 0.55, "a 6 × 6 image", fontsize=9)
    arrow(axes, (8.15, 2.15), (8.6, 2.15))
    grid(axes, 8.75, 1.6, 3, 1.1, [(1, 2)], ACCENT)
    label(axes, 9.3, 1.25, "3 × 3", fontsize=9)
    label(axes, 2.3, 3.8, "fully connected = convolution", fontweight="bold", fontsize=9)
    label(axes, 7.4, 3.8, "… and every crop of a larger image at once", fontweight="bold", fontsize=9)
    return figure


def _channel_pooling() -> Figure:
    figure, axes = canvas(10, 4.4)
    inputs, hidden, out = {"a": 3.1, "b": 1.3}, (3.6, 2.2, 0.8), (7.2, 2.2)
    weights = ((("a", "1"), ("b", "−1")), (("b", "1"),), (("b", "−1"),))
    for (height, wires), final in zip(zip(hidden, weights, strict=True), ("1", "1", "−1"), strict=True):
        for source, weight in wires:
            wire(axes, (1.2, inputs[source]), (4.2, height), weight, 0.42 if source == "a" else 0.5)
        wire(axes, (4.2, height), out, final)
    for name, height in inputs.items():
        neuron(axes, 1.2, height, name, ACCENT)
    for height, text in zip(hidden, ("relu(a − b)", "relu(b)", "relu(−b)"), strict=True):
        neuron(axes, 4.2, height, "", BASE)
        label(axes, 4.2, height - 0.5, text, fontsize=8.5)
    neuron(axes, *out, "Σ", GOOD)
    label(axes, 8.6, 2.2, "= max(a, b)", fontsize=12, fontweight="bold", color=GOOD)
    for x, text in ((1.2, "two channels"), (4.2, "first 1×1 + ReLU"), (7.2, "second 1×1")):
        label(axes, x, 4.2, text, fontsize=9, color=QUIET)
    return figure


def _stride() -> Figure:
    figure, axes = canvas(10, 4.2)
    panels: tuple[tuple[float, list[tuple[int, int]], str, str], ...] = (
        (0.5, [(r, c) for r in range(0, 6, 2) for c in range(0, 6, 2)], "1×1, stride 2: reads 9 of 36", ACCENT),
        (3.7, [(r, c) for r in range(6) for c in range(6)], "3×3, stride 2: reads all", BASE),
        (6.9, [(r, c) for r in range(6) for c in range(6)], "1×1, then pooling: reads all", GOOD),
    )
    for x, cells, text, colour in panels:
        grid(axes, x, 0.9, 6, 2.5, cells, colour)
        label(axes, x + 1.25, 0.5, text, fontsize=9)
    label(axes, 5, 3.85, "which pixels reach the 3 × 3 output", fontweight="bold")
    return figure


CONSTRUCTIONS: dict[str, Callable[[], Figure]] = {
    "cost": _cost,
    "linear-map": _linear_map,
    "neighbours": _neighbours,
    "one-channel": _one_channel,
    "comparison": _comparison,
    "dimensions": _dimensions,
    "fully-connected": _fully_connected,
    "channel-pooling": _channel_pooling,
    "stride": _stride,
}
CONSTRUCTION_CAPTIONS = {
    "cost": "A box of feature maps becomes a box of the same height and width with another number of channels.",
    "linear-map": "One pixel's channels pass through a small network of connections; the same happens at every pixel.",
    "neighbours": "An image and its shuffled pixels are the same to 1x1s and global average pooling.",
    "one-channel": "One channel: the same picture, rescaled. Many channels: a new picture.",
    "comparison": "Two detected amounts, cat and dog, and the positive part of their difference.",
    "dimensions": "Dimensions are lost only with fewer filters than channels.",
    "fully-connected": "A fully connected layer equals a convolution, and applies to every crop of a larger image.",
    "channel-pooling": "max(a, b) = relu(a - b) + relu(b) - relu(-b), drawn as two layers.",
    "stride": "Which pixels reach the output: one in four, or all.",
}
"""What each drawing shows."""
