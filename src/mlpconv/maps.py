"""Category maps: exact class activation maps (CAM), where in an image each class was seen.

A network with global average pooling computes one map per class, and the logit of a class is the mean of its map: each
cell contributes exactly value / (h*w) to the logit. Source: Lin, Chen and Yan, section 4.6 and figure 4.

The position of a cell in the image is the centre of its receptive field (`mlpconv.receptive_field.map_grid`).
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
from mlpconv.text import counted

__all__ = ["MapResult", "Peak", "Sighting", "category_maps", "find_peak", "in_file"]

FloatArray = npt.NDArray[np.float32]


class Peak(NamedTuple):
    """A position in an image, in pixels: x to the right, y down."""

    x: float
    y: float


@dataclass(frozen=True)
class Sighting:
    """One class in one image: its probability, its logit and where it was seen."""

    label: str
    index: int
    probability: float
    logit: float
    peak: Peak | None
    """Centre of the cell with the largest value, in pixels of the image; None for a constant map."""
    box: Box | None
    """Bounding box of the cells connected to the peak that reach half of its height above the map's minimum."""


@dataclass(frozen=True)
class MapResult:
    """Category maps of N images, with the images, probabilities and the position of each cell."""

    classes: tuple[str, ...]
    probabilities: FloatArray
    """(N, K) softmax probabilities."""
    maps: FloatArray
    """(N, K, h, w) maps; their spatial means are the logits."""
    pixels: npt.NDArray[np.uint8]
    """(N, C, H, W) images as the network received them."""
    sources: tuple[str | None, ...]
    """The file of each image, or None."""
    grid: MapGrid

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.maps.shape[1:])
        return f"<MapResult of {counted(len(self), 'image')}: maps {shape} of {len(self.classes)} classes>"

    @property
    def logits(self) -> FloatArray:
        """Return (N, K) logits, the mean of each map."""
        return np.asarray(self.maps.mean(axis=(2, 3), dtype=np.float64), dtype=np.float32)

    def evidence(self, label: str, against: str | None = None) -> npt.NDArray[np.float64]:
        """Return (N, h, w) contributions of each cell to a class's logit, or to the difference from another's logit.

        The contributions sum to the logit or difference; positive values are evidence for the class. Raises UsageError
        for an unknown class.
        """
        contributions = self.maps[:, self._index(label)].astype(np.float64)
        if against is not None:
            contributions = contributions - self.maps[:, self._index(against)]
        return np.asarray(contributions / (self.maps.shape[2] * self.maps.shape[3]))

    def top(self, image: int, count: int = 3) -> list[Sighting]:
        """Return the `count` most probable classes of one image, the most probable first."""
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
    """Convert a position in the network's input (H, W) to pixels of the upright original image (H0, W0).

    This inverts decoding by `fit`: crop resizes the shorter side, pad the longer one, stretch both. Positions in the
    padding are moved to the nearest edge.
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
    """Return the peak of an (h, w) map in an (H, W) image and the box around it; None, None for a constant map."""
    if not values.max() > values.min():
        return None, None
    row, column = (int(i) for i in np.unravel_index(int(values.argmax()), values.shape))
    y = min(max(grid.rows.first + row * grid.rows.stride, 0.0), size[0] - 1.0)
    x = min(max(grid.columns.first + column * grid.columns.stride, 0.0), size[1] - 1.0)
    cells = _connected(values >= (values.max() + values.min()) / 2, (row, column))
    rows, columns = [r for r, _ in cells], [c for _, c in cells]
    top, bottom = grid.rows.span(min(rows), max(rows), grid.rows.stride, size[0])
    left, right = grid.columns.span(min(columns), max(columns), grid.columns.stride, size[1])
    return Peak(x, y), Box(left, top, right, bottom)


def _connected(mask: npt.NDArray[np.bool_], start: tuple[int, int]) -> set[tuple[int, int]]:
    """Return the 4-connected component of a mask that contains `start`."""
    seen, edge = {start}, [start]
    while edge:
        row, column = edge.pop()
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= cell[0] < mask.shape[0] and 0 <= cell[1] < mask.shape[1]
            if inside and cell not in seen and mask[cell]:
                seen.add(cell)
                edge.append(cell)
    return seen


def category_maps(classifier: Classifier, images: Any, batch_size: int = 64) -> MapResult:
    """Return the category maps, the exact class activation maps (CAM), of one or more images.

    `images` are paths, Pillow images or uint8 arrays, as for `Classifier.predict`. Raises UsageError for a network
    without category maps, ImageError for an image that cannot be read, ModelFileError for a network that outputs NaN.
    """
    inputs = list(items(images))
    pixels = as_pixels(inputs, classifier.input_size, classifier.preprocessing.decode_options)  # (N, C, H, W)
    grid = trace_grid(classifier.model, (pixels.shape[1], pixels.shape[2], pixels.shape[3]))
    maps = torch.cat(
        [classifier.maps(batch).float().cpu() for batch in torch.split(pixels, batch_size)]
    )  # (N, K, h, w)
    if not torch.isfinite(maps).all():
        raise ModelFileError(
            "The network outputs NaN or infinity: its weights are too large. Retrain it, with a lower learning rate."
        )
    probabilities = maps.double().mean((2, 3)).softmax(1).float()
    sources = tuple(source_of(item) for item in inputs)
    return MapResult(classifier.classes, probabilities.numpy(), maps.numpy(), pixels.numpy(), sources, grid)
