"""Compare the outputs of an exported file with those of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpconv.data.digits import read_digits
from mlpconv.data.inputs import read_pixels
from mlpconv.deploy.onnx_graph import GraphBytes, PixelsToOutputs, onnx_graph, other_size
from mlpconv.deploy.predictor import Predictor
from mlpconv.deploy.runtime import OnnxRuntime, OpenVino, Runtime, installed_engines
from mlpconv.errors import ExportError
from mlpconv.threads import one_thread

__all__ = ["MAX_DIFFERENCE", "Parity", "checked_graph", "compare_with_torch", "sample_pixels"]

MAX_DIFFERENCE = 1e-4
"""Largest accepted difference of a logit or map value, relative to the largest logit."""
COUNT = 16  # images of each kind
ODD_BATCH = 3  # a batch size that was not traced

Pixels = NDArray[np.uint8]
Arrays = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """How the outputs of an exported file differ from those of torch."""

    images: int
    """Number of images compared: random pixels, photographs or digits, constant images."""
    logits: float
    """Largest difference of a logit, relative to the largest logit."""
    maps: float
    """Largest difference of a map value, relative to the largest logit; 0 without maps."""
    probabilities: float
    """Largest absolute difference of a probability."""
    same_class: bool
    """Whether the most probable class of every image is the same."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)


def sample_pixels(input_size: tuple[int, int, int], real: Pixels | None = None) -> Pixels:
    """Return images (N, C, H, W) to compare on: random, real (default: embedded digits), black and white."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (COUNT, *input_size), dtype=np.uint8)
    if real is None or not len(real):
        from mlpconv.decode_options import DEFAULT_DECODING

        digits = read_digits()["test"].images[:COUNT, 0]
        real = np.stack([read_pixels(digit, input_size, DEFAULT_DECODING) for digit in digits])
    flat = np.stack([np.full(input_size, value, np.uint8) for value in (0, 255)])
    return np.concatenate([noise, real[: 4 * COUNT], flat])


@one_thread()
def checked_graph(graph: PixelsToOutputs) -> GraphBytes:
    """Return a network as ONNX: for any image size if its outputs are those of torch at several sizes.

    A size that the trace took for a constant would be seen only there. Raises ExportError as `onnx_graph` does.
    """
    written = onnx_graph(graph)
    if not written.any_size:
        return written
    content, (_, height, width) = written.content, graph.input_size
    runtime = OnnxRuntime(content, 1) if "onnxruntime" in installed_engines() else OpenVino(content, None, 1)
    least = graph.min_size
    sizes = ((least, least), (height + 1, width + 2), (height + 2, width + 1), (2 * height + 3, 2 * width + 1))
    if all(_agrees(graph, runtime, size) for size in sizes):
        return written
    return onnx_graph(graph, fixed_size=True)


def _agrees(graph: PixelsToOutputs, runtime: Runtime, size: tuple[int, int]) -> bool:
    """Return whether a graph gives the outputs of torch for an image of (H, W)."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, graph.input_size[0], *size), dtype=np.uint8)
    try:
        expected = _outputs_of_torch(graph, pixels)
        actual = runtime.run(pixels, list(graph.outputs))
    except Exception:  # noqa: BLE001  (whatever a network or an engine raises for a size)
        return False
    tolerance = MAX_DIFFERENCE * (float(np.abs(expected[1]).max()) or 1.0)
    return all(e.shape == a.shape and np.abs(e - a).max() <= tolerance for e, a in zip(expected, actual, strict=True))


@one_thread()
def compare_with_torch(graph: PixelsToOutputs, predictor: Predictor, pixels: Pixels) -> Parity:
    """Compare an exported file with torch on uint8 pixels (N, C, H, W): alone, in batches, and at another size.

    The classes of an image are compared only if torch separates its best two by more than the difference of the logits.
    """
    batches = [pixels[:1], pixels[1:2], pixels[2:], pixels[:ODD_BATCH]]
    if predictor.metadata.any_size:
        shape = (ODD_BATCH, *other_size(graph.input_size))
        batches.append(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    pairs = [_compare(graph, predictor, batch) for batch in batches]
    largest = max(float(np.abs(expected[1]).max()) for expected, _ in pairs) or 1.0
    differences = [max(float(np.abs(e[k] - a[k]).max()) for e, a in pairs) for k in range(len(graph.outputs))]
    same = all(_same_class(expected[1], actual[1], differences[1]) for expected, actual in pairs)
    maps = differences[2] / largest if len(differences) > 2 else 0.0
    return Parity(sum(len(batch) for batch in batches), differences[1] / largest, maps, differences[0], same)


def _compare(graph: PixelsToOutputs, predictor: Predictor, pixels: Pixels) -> tuple[Arrays, Arrays]:
    """Return the outputs of torch and of the file."""
    return _outputs_of_torch(graph, pixels), predictor.outputs(pixels, list(graph.outputs))


def _outputs_of_torch(graph: PixelsToOutputs, pixels: Pixels) -> Arrays:
    """Return the outputs of torch; the logits are those of the network called directly."""
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in graph(torch.from_numpy(pixels))]
        expected[1] = graph.network(graph.preprocessing(torch.from_numpy(pixels))).numpy()
    if not all(np.isfinite(values).all() for values in expected):
        raise ExportError("The network outputs NaN or infinity: its weights are too large. Retrain it.")
    return expected


def _same_class(expected: NDArray[np.float32], actual: NDArray[np.float32], difference: float) -> bool:
    """Return whether logits (N, K) have the same largest entry wherever the difference cannot decide it."""
    if expected.shape[1] == 1:
        return True
    top = np.sort(expected, 1)
    clear = top[:, -1] - top[:, -2] > 2 * difference
    return bool((actual.argmax(1) == expected.argmax(1))[clear].all())
