"""Where in an image each class was seen: category maps (the paper's section 4.6 and figure 4).

A network with global average pooling makes one map per class, and a class's logit is the mean of its map: each cell
adds its value / (h*w) to the logit, no more and no less.

A cell belongs to a place in the image, the centre of its receptive field (`mlpconv.receptive_field.map_grid`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch

from mlpconv.data.resize import window
from mlpconv.errors import ModelFileError, UsageError, did_you_mean
from mlpconv.inference import Classifier
from mlpconv.inference.pixels import as_pixels, items, source_of
from mlpconv.receptive_field.map_grid import Box, MapGrid, trace_grid

__all__ = ["MapResult", "Peak", "Sighting", "category_maps", "find_peak", "in_file"]

FloatArray = npt.NDArray[np.float32]


class Peak(NamedTuple):
    """A place in an image, in pixels: x to the right, y down."""

    x: float
    y: float


@dataclass(frozen=True)
class Sighting:
    """One class in one image: how sure the network is, and where it saw it."""

    label: str
    index: int
    probability: float
    logit: float
    peak: Peak | None
    """Centre of the cell with the most evidence, in pixels of the image; None where all cells are alike."""
    box: Box | None
    """Around the cells that hang together with the peak and are at least half as far above the map's least."""


@dataclass(frozen=True)
class MapResult:
    """Category maps of some images, with what is needed to read them."""

    classes: tuple[str, ...]
    probabilities: FloatArray
    """(N, K)"""
    maps: FloatArray
    """(N, K, h, w), whose spatial mean is the logits."""
    pixels: npt.NDArray[np.uint8]
    """(N, C, H, W), the images as the network was given them."""
    sources: tuple[str | None, ...]
    """The file of each image, where it came from one."""
    grid: MapGrid

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.maps.shape[1:])
        return f"<MapResult of {len(self):,} images: maps {shape} of {len(self.classes)} classes>"

    @property
    def logits(self) -> FloatArray:
        """(N, K): the mean of each map."""
        return np.asarray(self.maps.mean(axis=(2, 3), dtype=np.float64), dtype=np.float32)

    def evidence(self, label: str, against: str | None = None) -> npt.NDArray[np.float64]:
        """What each cell adds to a class's logit, or to its lead over another: (N, h, w), whose sum is just that.

        Positive is for the class, negative is against it. Raises UsageError for an unknown class.
        """
        shares = self.maps[:, self._index(label)].astype(np.float64)
        if against is not None:
            shares = shares - self.maps[:, self._index(against)]
        return np.asarray(shares / (self.maps.shape[2] * self.maps.shape[3]))

    def top(self, image: int, count: int = 3) -> list[Sighting]:
        """The most probable classes of one image, the first one first, and where each was seen."""
        order = np.argsort(-self.probabilities[image], kind="stable")[:count]
        return [self._sighting(image, int(index)) for index in order]

    def _sighting(self, image: int, index: int) -> Sighting:
        values = self.maps[image, index]
        peak, box = find_peak(values, self.grid, (self.pixels.shape[2], self.pixels.shape[3]))
        probability = float(self.probabilities[image, index])
        return Sighting(self.classes[index], index, probability, float(values.mean(dtype=np.float64)), peak, box)

    def _index(self, label: str) -> int:
        if label not in self.classes:
            raise UsageError(f"There is no class {label!r}; {did_you_mean(label, self.classes)}")
        return self.classes.index(label)


@overload
def in_file(place: Peak, size: tuple[int, int], original: tuple[int, int], fit: str = ...) -> Peak: ...
@overload
def in_file(place: Box, size: tuple[int, int], original: tuple[int, int], fit: str = ...) -> Box: ...
def in_file(place: Peak | Box, size: tuple[int, int], original: tuple[int, int], fit: str = "crop") -> Peak | Box:
    """A place in an image as the network got it, (H, W), in pixels of the upright original (H0, W0).

    The inverse of decoding by `fit`: crop resizes the shorter side, pad the longer one, stretch both. What was padded
    belongs to the nearest edge.
    """
    (top, left), (high_scale, wide_scale) = window(original, size, fit)
    if isinstance(place, Peak):
        x, y = left + (place.x + 0.5) / wide_scale - 0.5, top + (place.y + 0.5) / high_scale - 0.5
        return Peak(min(max(x, -0.5), original[1] - 0.5), min(max(y, -0.5), original[0] - 0.5))
    starts, ends = (left, top, left, top), (original[1], original[0]) * 2
    by_axis = (wide_scale, high_scale) * 2
    edges = [math.floor(start + edge / by + 0.5) for start, edge, by in zip(starts, place, by_axis, strict=True)]
    low = [min(max(edge, 0), end - 1) for edge, end in zip(edges[:2], ends, strict=False)]
    high = [min(max(edge, start + 1), end) for edge, start, end in zip(edges[2:], low, ends, strict=False)]
    return Box(*low, *high)


def find_peak(values: FloatArray, grid: MapGrid, size: tuple[int, int]) -> tuple[Peak | None, Box | None]:
    """Where an (h, w) map is highest in an (H, W) image, and the box around that; None, None for a flat map."""
    if not values.max() > values.min():
        return None, None
    row, column = (int(i) for i in np.unravel_index(int(values.argmax()), values.shape))
    y = min(max(grid.rows.first + row * grid.rows.stride, 0.0), size[0] - 1.0)
    x = min(max(grid.columns.first + column * grid.columns.stride, 0.0), size[1] - 1.0)
    cells = _together(values >= (values.max() + values.min()) / 2, (row, column))
    rows, columns = [r for r, _ in cells], [c for _, c in cells]
    top, bottom = grid.rows.span(min(rows), max(rows), grid.rows.stride, size[0])
    left, right = grid.columns.span(min(columns), max(columns), grid.columns.stride, size[1])
    return Peak(x, y), Box(left, top, right, bottom)


def _together(mask: npt.NDArray[np.bool_], start: tuple[int, int]) -> set[tuple[int, int]]:
    """The cells of a mask that hang together with one of them, side by side."""
    seen, edge = {start}, [start]
    while edge:
        row, column = edge.pop()
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1]
            if inside and near not in seen and mask[near]:
                seen.add(near)
                edge.append(near)
    return seen


def category_maps(classifier: Classifier, images: Any, batch_size: int = 64) -> MapResult:
    """The category maps of images: paths, Pillow images or uint8 arrays, whatever `classifier.predict` takes.

    Raises UsageError for a network without category maps, ImageError for an image that cannot be read, ModelFileError
    for a network that gives NaN.
    """
    found = list(items(images))
    pixels = as_pixels(found, classifier.input_size, classifier.preprocessing.decode_options)  # (N, C, H, W)
    grid = trace_grid(classifier.model, (pixels.shape[1], pixels.shape[2], pixels.shape[3]))
    parts = (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
    maps = torch.cat([classifier.maps(part).float().cpu() for part in parts])  # (N, K, h, w)
    if not torch.isfinite(maps).all():
        raise ModelFileError(
            "The network gives NaN or infinity: its weights are too large to compute with, train anew."
        )
    probabilities = maps.double().mean((2, 3)).softmax(1).float()
    sources = tuple(source_of(item) for item in found)
    return MapResult(classifier.classes, probabilities.numpy(), maps.numpy(), pixels.numpy(), sources, grid)
