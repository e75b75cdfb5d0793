"""Padding that depends on the size of the image: any size in ONNX and OpenVINO, with the outputs of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpconv
from mlpconv.deploy.exportable import exportable_from_network
from mlpconv.deploy.exporting import Exported, export
from mlpconv.deploy.predictor import Predictor
from mlpconv.deploy.same_padding import same_conv2d
from mlpconv.models.efficientnet_lite import same_padded, same_padding
from mlpconv.preprocessing import Preprocessing

SIZES = [(11, 13), (1, 1), (2, 3), (37, 41), (16, 8), (7, 64)]


class SamePadded(nn.Conv2d):
    """A strided convolution with TensorFlow's SAME padding, or with its mirror image."""

    mirrored = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.mirrored:
            return super().forward(same_padded(x, self))
        rows, columns = (same_padding(side, 3, 2)[::-1] for side in x.shape[2:])
        return super().forward(F.pad(x, (*columns, *rows)))


def exported(folder: Path, mirrored: bool) -> tuple[Exported, nn.Module]:
    torch.manual_seed(0)
    first, second = SamePadded(3, 5, 3, 2), SamePadded(5, 4, 5, 2, bias=False)
    first.mirrored = mirrored
    layers = (first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network = nn.Sequential(*layers).eval()
    source = exportable_from_network(network, Preprocessing(["scale"], 3, (11, 13)), list("abc"), (3, 11, 13))
    return export(source, folder / "net.onnx"), network


def test_a_graph_with_such_padding_takes_any_size(tmp_path: Path) -> None:
    result, network = exported(tmp_path, mirrored=False)
    assert result.metadata.any_size
    convolutions = [node for node in onnx.load(result.path).graph.node if node.op_type == "Conv"][:2]
    assert all(any(item.s == b"SAME_UPPER" for item in node.attribute) for node in convolutions)
    predictors = [Predictor(result.path, engine=name, threads=1) for name in ("onnxruntime", "openvino")]
    for size in SIZES:
        pixels = np.random.default_rng(size[0]).integers(0, 256, (2, 3, *size), dtype=np.uint8)
        with torch.no_grad():
            expected = network(torch.from_numpy(pixels) / 255).softmax(1).numpy()
        for predictor in predictors:
            np.testing.assert_allclose(predictor.probabilities(pixels), expected, atol=1e-5)


def test_another_padding_that_the_trace_takes_for_a_constant_allows_one_size(tmp_path: Path) -> None:
    """The zeros are on the other side: torch's exporter writes a graph that is right at the traced size only."""
    result, network = exported(tmp_path, mirrored=True)
    assert not result.metadata.any_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 11, 13), dtype=np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels) / 255).softmax(1).numpy()
    np.testing.assert_allclose(Predictor(result.path).probabilities(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_operator_pads_as_tensorflow_does(size: tuple[int, int]) -> None:
    """Against the definition: output (i, j) is centred so that the zeros are shared, the odd one at the end."""
    x, weight = torch.randn(1, 2, *size), torch.randn(3, 2, 5, 3)
    actual = same_conv2d(x, weight, None, [3, 2], [1, 1], 1)
    rows, columns = -(-size[0] // 3), -(-size[1] // 2)
    padded = torch.zeros(1, 2, 3 * (rows - 1) + 5, 2 * (columns - 1) + 3)
    top, left = (padded.shape[2] - size[0]) // 2, (padded.shape[3] - size[1]) // 2
    padded[:, :, top : top + size[0], left : left + size[1]] = x
    assert actual.shape == (1, 3, rows, columns)
    for i in range(rows):
        for j in range(columns):
            window = padded[0, :, 3 * i : 3 * i + 5, 2 * j : 2 * j + 3]
            torch.testing.assert_close(actual[0, :, i, j], (weight * window).sum((1, 2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_efficientnet_lite0_takes_any_size(to: str, tmp_path: Path) -> None:
    classifier = mlpconv.load("efficientnet_lite0")
    path = export(classifier, tmp_path / ("e.onnx" if to == "onnx" else "e.xml"), to).path
    predictor = Predictor(path, engine="onnxruntime" if to == "onnx" else "openvino")
    for size in [(224, 224), (223, 227), (61, 97), (37, 31), (1, 1), (2, 3), (256, 129)]:
        pixels = np.random.default_rng(size[0]).integers(0, 256, (2, 3, *size), dtype=np.uint8)
        expected = classifier.maps(torch.from_numpy(pixels)).numpy()
        maps, _ = predictor.maps(pixels)
        np.testing.assert_allclose(maps, expected, atol=1e-4 * np.abs(expected).max())
