"""Quantise an exported graph to int8: static, per channel, calibrated on images, with its accuracy measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpconv.deploy.metadata import Metadata
from mlpconv.deploy.onnx_file import seal
from mlpconv.deploy.onnx_graph import PixelsToOutputs
from mlpconv.deploy.predictor import Predictor
from mlpconv.errors import ExportError

__all__ = ["MAX_LOSS", "MIN_AGREEMENT", "Calibration", "Quantized", "quantized"]

MAX_LOSS = 0.003
"""Largest accepted loss of accuracy on labelled images."""
MIN_AGREEMENT = 0.97
"""Smallest accepted fraction of unlabelled images with the same class as float32."""
BATCH = 32

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Calibration:
    """Images for quantisation: some to choose the ranges of activations, others to measure the accuracy."""

    images: Pixels
    """(N, C, H, W) to calibrate on."""
    held_out: Pixels
    """(M, C, H, W) to measure on."""
    labels: NDArray[np.int64] | None
    """(M,) class indices of `held_out`, or None."""
    name: str
    """Where the images come from."""


@dataclass(frozen=True)
class Quantized:
    """What int8 costs, on images that were not used for calibration."""

    data: str
    calibration_images: int
    held_out_images: int
    accuracy: float | None
    """Of int8; None without labels."""
    float_accuracy: float | None
    agreement: float
    """Fraction of images whose class is that of float32."""
    float_layers: tuple[str, ...]
    """Convolutions that were left in float32, as the loss was too large with them in int8."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)


def quantized(
    graph: PixelsToOutputs, content: bytes, metadata: Metadata, calibration: Calibration, stage: Path
) -> tuple[bytes, Quantized]:
    """Return an int8 graph of a float32 graph and what it costs.

    If the loss is too large, the first and last convolutions are left in float32. Raises ExportError if it is still too
    large.
    """
    (stage / "float.onnx").write_bytes(seal(content, metadata))
    expected = _classes(stage / "float.onnx", calibration.held_out)
    nodes = _convolutions(content, graph)
    for kept in ((), (nodes[0], nodes[-1])):
        small = _quantize(content, [node for node in nodes if node not in kept], calibration.images, stage)
        (stage / "int8.onnx").write_bytes(seal(small, metadata))
        actual = _classes(stage / "int8.onnx", calibration.held_out)
        result = _compare(calibration, expected, actual, kept)
        loss = 0.0 if result.accuracy is None else (result.float_accuracy or 0.0) - result.accuracy
        if loss <= MAX_LOSS and (calibration.labels is not None or result.agreement >= MIN_AGREEMENT):
            return small, result
    raise ExportError(_explain(result))


def _explain(result: Quantized) -> str:
    if result.accuracy is None:
        lost = f"only {result.agreement:.1%} of {result.held_out_images} images keep their class; "
        return f"int8 changes too much: {lost}accepted: {MIN_AGREEMENT:.0%}. The file is not written."
    lost = f"{result.accuracy:.2%} instead of {result.float_accuracy:.2%} on {result.held_out_images} images"
    return f"int8 loses too much accuracy: {lost}; accepted: {MAX_LOSS:.1%} less. The file is not written."


def _compare(
    calibration: Calibration, expected: NDArray[np.int64], actual: NDArray[np.int64], kept: tuple[str, ...]
) -> Quantized:
    labels = calibration.labels
    accuracy = None if labels is None else float((actual == labels).mean())
    float_accuracy = None if labels is None else float((expected == labels).mean())
    agreement = float((actual == expected).mean())
    counts = len(calibration.images), len(calibration.held_out)
    return Quantized(calibration.name, *counts, accuracy, float_accuracy, agreement, kept)


def _classes(path: Path, pixels: Pixels) -> NDArray[np.int64]:
    """Return the most probable class (N,) of pixels (N, C, H, W)."""
    predictor = Predictor(path, engine="onnxruntime")
    parts = [predictor.probabilities(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    classes: NDArray[np.int64] = np.concatenate(parts).argmax(1)
    return classes


def _convolutions(content: bytes, graph: PixelsToOutputs) -> list[str]:
    """Return the names of the network's convolutions and linear layers, in order, without those of preprocessing."""
    import onnx

    nodes = [node for node in onnx.load_from_string(content).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    if graph.preprocessing.names and {"lcn", "zca"} & set(graph.preprocessing.names):
        nodes = [node for node in nodes if not _belongs_to(node, "preprocessing")]
    return [node.name for node in nodes]


def _belongs_to(node: Any, part: str) -> bool:
    """Return whether a node was traced in a submodule of the exported module."""
    return any(part in entry.value for entry in node.metadata_props if "module" in entry.key or "name" in entry.key)


def _quantize(content: bytes, nodes: list[str], images: Pixels, stage: Path) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Give the calibration images in batches."""

        def __init__(self) -> None:
            self.batches: Iterator[Pixels] = iter(np.array_split(images, max(1, len(images) // BATCH)))

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": np.ascontiguousarray(batch)}

    (stage / "plain.onnx").write_bytes(content)
    quant_pre_process(str(stage / "plain.onnx"), str(stage / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(stage / "prepared.onnx"), str(stage / "quantized.onnx"), Reader(),
        quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, nodes_to_quantize=nodes,
    )  # fmt: skip
    return (stage / "quantized.onnx").read_bytes()
