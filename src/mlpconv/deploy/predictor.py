"""Classify images with an exported file, without torch: NumPy, Pillow and ONNX Runtime or OpenVINO are enough."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlpconv.cores import CORES
from mlpconv.data.inputs import array_batches, image_items
from mlpconv.deploy.runtime import EngineName, open_runtime
from mlpconv.errors import ExportError, ImageError, UsageError
from mlpconv.predictions import Predictions

__all__ = ["Predictor"]

FloatArray = NDArray[np.float32]


class Predictor:
    """An exported classifier: images in, class names and probabilities out, as from the `Classifier` it was made of.

    `classes`, `input_size` and `info` are those of the model file; `metadata` has all that the file says.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, engine: EngineName = "auto", threads: int | None = None
    ) -> None:
        """Open a file from `mlpconv export`; `threads`, also of decoding, defaults to the number of cores.

        `engine` is onnxruntime, openvino, or auto: the faster one of those installed; `choice` says which and why.
        Raises ExportError for a file that cannot be used, UsageError for an engine that is not installed.
        """
        self._threads = CORES if threads is None else threads
        self.metadata, self._runtime, self.choice = open_runtime(Path(path), engine, self._threads)
        self.classes, self.input_size = self.metadata.classes, self.metadata.input_size
        self.info = self.metadata.info

    @property
    def engine(self) -> str:
        """Return the name and version of the engine."""
        return self._runtime.name

    def predict(
        self, images: object, batch_size: int = 64, *, tta_flip: bool = False, on_error: str = "raise"
    ) -> Predictions:
        """Classify one or more images; return their classes and probabilities.

        `images` is one image or a sequence of them: paths, bytes of files, Pillow images, uint8 arrays (H, W) or
        (H, W, C); or a uint8 batch (N, C, H, W). `tta_flip` averages the logits of each image and its horizontal flip.
        With `on_error` "skip", unreadable images have no row, and `.skipped` of the result holds their errors.
        Raises UsageError for an empty sequence or anything that is not an image, ImageError for an unreadable file.
        """
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error is {on_error!r:.40}; accepted: raise, skip.")
        if type(batch_size) is not int or batch_size < 1:
            raise UsageError(f"batch_size is {batch_size!r}; expected an integer of at least 1.")
        skipped: list[ImageError] = []
        rows: list[FloatArray] = [np.empty((0, len(self.classes)), np.float32)]
        sources: list[str | None] = []
        failed = skipped if on_error == "skip" else None
        options = self.metadata.decode_options
        items = image_items(images)
        for pixels, files in array_batches(items, self.input_size, batch_size, options, failed, self._threads):
            rows.append(self.probabilities(pixels, tta_flip=tta_flip))
            sources += files
        return Predictions(np.concatenate(rows), self.classes, sources, skipped)

    def probabilities(self, pixels: NDArray[np.uint8], *, tta_flip: bool = False) -> FloatArray:
        """Return probabilities (N, K) of uint8 pixels (N, C, H, W); raise ExportError for NaN."""
        pixels = self._checked(pixels)
        if tta_flip:
            (plain,), (flipped,) = (self._runtime.run(x, ["logits"]) for x in (pixels, _flipped(pixels)))
            result = _softmax_of_mean(plain, flipped)
        else:
            (result,) = self._runtime.run(pixels, ["probabilities"])
        if not np.isfinite(result).all():
            raise ExportError("The network outputs NaN: its weights are too large. Retrain it and export it again.")
        return result

    def maps(self, pixels: NDArray[np.uint8]) -> tuple[FloatArray, FloatArray]:
        """Return category maps (N, K, h, w), whose means are the logits, and probabilities (N, K), of uint8 pixels.

        Raises ExportError for a network with a fully connected head, which has no maps.
        """
        if not self.metadata.has_maps:
            raise ExportError(f"{self.metadata.name} has no category maps: its head is fully connected.")
        maps, probabilities = self._runtime.run(self._checked(pixels), ["maps", "probabilities"])
        return maps, probabilities

    def outputs(self, pixels: NDArray[np.uint8], names: Sequence[str]) -> list[FloatArray]:
        """Return the named outputs of the graph (see `metadata.outputs`) for uint8 pixels (N, C, H, W)."""
        return self._runtime.run(self._checked(pixels), names)

    def _checked(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return contiguous pixels; raise UsageError for another dtype, number of channels or size."""
        channels, height, width = self.input_size
        shape = tuple(pixels.shape)
        if pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != channels:
            raise UsageError(f"Expected uint8 pixels (N, {channels}, H, W), got {pixels.dtype} {shape}.")
        least = self.metadata.min_size
        fits = min(shape[2:]) >= least if self.metadata.any_size else shape[2:] == (height, width)
        if not fits:
            accepted = f"at least {least}x{least}" if self.metadata.any_size else f"{height}x{width}"
            raise UsageError(f"Expected images of {accepted} pixels, got {shape[2]}x{shape[3]}.")
        return np.ascontiguousarray(pixels)

    def __repr__(self) -> str:
        size = "x".join(str(side) for side in self.input_size)
        return f"<Predictor {self.metadata.name!r}: images {size}, {len(self.classes)} classes, {self.engine}>"


def _flipped(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels[..., ::-1])


def _softmax_of_mean(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the softmax (N, K) of the mean of two arrays of logits (N, K)."""
    logits = (first + second) * np.float32(0.5)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    result: FloatArray = exponentials / exponentials.sum(1, keepdims=True)
    return result
