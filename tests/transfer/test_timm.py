"""Networks of timm as sources: timm's logits, exact maps, and a model file that needs no weights of timm."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mlpconv
from mlpconv.cli import main
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.errors import DownloadError, ModelFileError, UsageError
from mlpconv.fitting import fit
from mlpconv.models import build
from mlpconv.models.external import import_vision
from mlpconv.models.timm_network import TimmConfig, TimmNetwork, check_linear_head
from mlpconv.transfer.lineage import timm_info
from mlpconv.transfer.source import open_source

SIDE = 67


@pytest.fixture(scope="module")
def timm() -> Any:
    try:
        return import_vision("timm")
    except UsageError:
        pytest.skip("timm is not installed")


@pytest.fixture(scope="module")
def original(timm: Any) -> Any:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=23)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def weights(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(original.state_dict(), path)
    return path


def stripes(classes: int = 2, images: int = 23) -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(images) % classes
    pixels = rng.integers(0, 120, (images, 3, SIDE, SIDE), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[:, 10 * label : 10 * label + 7] += 100
    return make_dataset("stripes", [f"row {i}" for i in range(classes)], {"train": Split(pixels, labels)})


def test_logits_maps_and_normalisation_are_timms(timm: Any, original: Any, weights: Path) -> None:
    classifier = open_source("timm:test_resnet", str(weights)).classifier
    assert classifier.input_size == (3, *original.pretrained_cfg["input_size"][1:])
    assert len(classifier.classes) == 23
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, SIDE, 61), np.uint8))
    mean, std = (torch.tensor(original.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = original((pixels / 255 - mean) / std)
    torch.testing.assert_close(classifier.logits(pixels), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classifier.maps(pixels).mean((2, 3)), expected, rtol=1e-4, atol=1e-4)


def test_a_run_stores_the_name_and_predicts_without_the_weights(
    timm: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(weights.read_bytes())
    run = fit(stripes(), source="timm:test_resnet", weights=str(own), report=False, precision="fp32")
    own.unlink()
    hub = import_module("huggingface_hub")
    for name in ("model_info", "hf_hub_download"):
        monkeypatch.setattr(hub, name, lambda *_, **__: pytest.fail("no network"))
    again = mlpconv.load(run.folder)
    assert again.model.config == TimmConfig("timm:test_resnet", 2, 3, (SIDE, SIDE))
    images = torch.from_numpy(np.array(stripes().split("train").images[:5]))
    assert torch.equal(again.logits(images), run.classifier.logits(images))
    assert again.info["metrics"]["train_accuracy"] > 0.8
    assert again.model.config.parameters == sum(parameter.numel() for parameter in again.model.parameters())


def test_all_layers_are_trained_and_the_statistics_of_norms_stay(timm: Any, original: Any, weights: Path) -> None:
    settings: dict[str, Any] = {"tune": "all", "epochs": 1, "batch_size": 8, "precision": "fp32", "report": False}
    run = fit(stripes(), source="timm:test_resnet", weights=str(weights), val_fraction=0, **settings)
    state, before = run.classifier.model.network.state_dict(), original.state_dict()
    statistics = [key for key in before if "running" in key]
    assert statistics
    assert all(torch.equal(state[key], before[key]) for key in statistics)
    assert not torch.equal(state["conv1.0.weight"], before["conv1.0.weight"])


def test_published_weights_name_their_data_and_a_file_does_not(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("huggingface_hub"), "try_to_load_from_cache", lambda *_: str(weights))
    assert open_source("timm:test_resnet").classifier.info == {"pretrained_on": "ImageNet"}
    assert open_source("timm:test_resnet", str(weights)).classifier.info == {}


@pytest.mark.parametrize(
    ("tag", "seen"),
    [("a1_in1k", True), ("augreg_in21k_ft_in1k", True), ("in12k", True), ("laion2b", False), ("fin1ka", False)],
)
def test_a_tag_of_timm_names_imagenet(tag: str, seen: bool) -> None:
    assert timm_info({"tag": tag}) == ({"pretrained_on": "ImageNet"} if seen else {})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:convnext_atto", "more than an average pool"),
        ("timm:mobilenetv3_small_050", "more than an average pool"),
        ("timm:vit_tiny_patch16_224", "more than an average pool"),
        ("timm:dla34", "has no linear classifier"),
    ],
)
def test_heads_that_are_not_linear_are_refused(timm: Any, name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_linear_head(TimmNetwork(TimmConfig(name)))


def test_weights_that_do_not_fit_are_refused(timm: Any, weights: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "resnet.pth"
    pickled.write_bytes(b"\x80\x04.")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-9])
    cases: list[tuple[str, Path, type[Exception], str]] = [
        ("timm:test_resnet", pickled, UsageError, "looks like a pickle.*safetensors.torch.save_file"),
        (
            "timm:test_resnet",
            tmp_path / "absent.safetensors",
            UsageError,
            "There is no file .*absent",
        ),
        ("timm:test_resnet", cut, ModelFileError, "is damaged, or not a safetensors file"),
        ("timm:resnet18", weights, ModelFileError, "The weights are not those of timm:resnet18"),
        ("timm:test_resne", weights, UsageError, "timm has no image classifier 'test_resne'"),
    ]
    for name, file, error, message in cases:
        with pytest.raises(error, match=message):
            open_source(name, str(file))


def test_offline_the_message_says_what_to_do(
    timm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(import_module("huggingface_hub"), "model_info", unknown)
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        open_source("timm:test_resnet")
    assert main(["train", "digits", "--from", "timm:test_resnet"]) == 1
    said = capsys.readouterr().err
    assert "download model.safetensors of timm/test_resnet" in said
    assert "--weights FILE" in said
    assert said.count("\n") == 1
    assert main(["train", "digits", "--from", "squeezenet", "--weights", "x.safetensors"]) == 2
    assert "--weights x.safetensors is for a network of timm" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["timm:", "timm:../x", "resnet18", "timm:a b", 3, "timm:" + "a" * 200])
def test_a_hostile_name_in_a_model_file_is_refused(name: object) -> None:
    with pytest.raises(UsageError, match="timm:ARCHITECTURE is accepted"):
        build({"family": "timm", "name": name, "num_classes": 3})


def test_norms_can_be_folded(timm: Any, original: Any, weights: Path) -> None:
    network = open_source("timm:test_resnet", str(weights)).classifier.model
    folded = mlpconv.surgery.fold(network, (3, SIDE, SIDE)).model
    assert not [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(folded(images), original(images), rtol=1e-3, atol=1e-3)
