"""Networks of timm and torchvision, fine-tuned ones, and results of surgery give the outputs of torch when exported."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlpconv.cli import main
from mlpconv.deploy.exportable import exportable_from_network
from mlpconv.deploy.exporting import export
from mlpconv.deploy.parity import MAX_DIFFERENCE
from mlpconv.deploy.predictor import Predictor
from mlpconv.inference import Classifier
from mlpconv.modelfile import save
from mlpconv.models.timm_network import TimmConfig, TimmNetwork
from mlpconv.preprocessing import Preprocessing
from mlpconv.surgery import convolutionalize, fold

NETWORKS = {  # outputs, and whether any size is accepted
    "timm:test_resnet": (3, True),
    "timm:resnet18": (3, True),
    "timm:convnext_atto": (2, True),
    "timm:test_efficientnet": (3, True),
    "timm:tf_efficientnet_lite0": (3, True),
    "timm:vit_tiny_patch16_224": (2, False),
    "torchvision:mobilenet_v3_small": (2, True),
    "torchvision:densenet121": (3, True),
    "torchvision:squeezenet1_1": (3, True),
    "torchvision:alexnet": (2, False),
}


def skip_without(library: str) -> None:
    """Skip a test if a library is not installed; torchvision's import may fail with another build of torch."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def exported(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What `mlpconv export NAME --json` says."""
    skip_without(name.partition(":")[0])
    assert main(["export", name, "--out", str(folder / "x.onnx"), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["files"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_network_of_another_library(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = exported(name, tmp_path, capsys)
    assert (len(result["outputs"]), result["any_size"]) == NETWORKS[name]
    assert result["checks"]["logits"] < MAX_DIFFERENCE


@pytest.mark.slow
def test_a_network_fine_tuned_from_timm(tmp_path: Path) -> None:
    """The model file names the architecture; its weights and preprocessing are exported as those of any other."""
    skip_without("timm")
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 61, 67), dtype=np.uint8)
    network = TimmNetwork(TimmConfig("timm:resnet18", num_classes=3, size=(61, 67)))
    preprocessing = Preprocessing(["standardize"], 3, (61, 67)).fit(images)
    path = tmp_path / "tuned.safetensors"
    save(path, network, preprocessing, classes=["a", "b", "c"], input_size=(3, 61, 67), info={})
    predictor = Predictor(export(path, tmp_path / "tuned.onnx").path, engine="onnxruntime")
    classifier = Classifier(network, preprocessing, ["a", "b", "c"], (3, 61, 67))
    for pixels in (images, images[..., :53, :59].copy()):
        expected = classifier.probabilities(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(predictor.probabilities(pixels), expected, atol=1e-5)
        maps = classifier.maps(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(predictor.maps(pixels)[0], maps, atol=1e-4 * np.abs(maps).max())


def test_the_result_of_surgery(tmp_path: Path) -> None:
    """A fully connected head that became convolutions, with folded norms; its map is 1x1 at the exported size."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 5 * 6, 7))
    network = nn.Sequential(*layers).eval()
    with torch.no_grad():
        network[1].running_mean.normal_()
    rewritten = fold(convolutionalize(network, (3, 11, 13), latency=False).model, (3, 11, 13)).model
    source = exportable_from_network(rewritten, Preprocessing(["scale"], 3, (11, 13)), list("abcdefg"), (3, 11, 13))
    result = export(source, tmp_path / "rewritten.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 11, 13), dtype=np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels) / 255).softmax(1).numpy()
    actual = Predictor(result.path, engine="onnxruntime").probabilities(pixels)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
