"""Tests of `mlpconv surgery`: model files, names and other libraries; reports, JSON and model files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from support.wrapped import Lambda
from torch import nn

import mlpconv
from mlpconv.cli import main
from mlpconv.models.timm_network import TimmNetwork


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small network with non-trivial norms."""
    model = mlpconv.create_model("nin_tiny", num_classes=2, in_channels=3, size=13)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=source))
                module.running_var.copy_(torch.rand(module.num_features, generator=source) + 0.5)
    preprocessing = mlpconv.Preprocessing.create(["scale"], 3, (13, 13))
    path = tmp_path / "model.safetensors"
    mlpconv.save(path, model, preprocessing, classes=("a", "b"), input_size=(3, 13, 13), info={"epochs": 3})
    return path


def test_a_report_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["surgery", "pool_head", "nin_tiny"]) == 0
    out = capsys.readouterr().out
    for part in (
        "pool_head of nin_tiny, images of 1×8×8",
        "multiply-adds",
        "float64",
        "already are averages of maps",
    ):
        assert part in out


def test_json_is_one_object_for_the_given_input_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["surgery", "convolutionalize", "nin_tiny", "--input", "1x16x12", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["operation"], data["input_shape"], data["exact"]) == ("convolutionalize", [1, 16, 12], True)
    assert data["details"]["step"] == [4, 4]


def test_a_folded_model_file_is_compared_on_images_and_written(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (17, 19, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    out = tmp_path / "folded.safetensors"
    names = [str(photo) for photo in sorted(photos.iterdir())]  # as the shell expands photos/*.png
    assert main(["surgery", "fold", str(file), "--images", *names, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "3 given" in printed
    assert f"Written: {out}" in printed
    before, after = mlpconv.load(file), mlpconv.load(out)
    assert after.classes == ("a", "b")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in after.model.modules())
    images = sorted(photos.iterdir())
    assert np.allclose(before.predict(images).probabilities, after.predict(images).probabilities, atol=1e-5)
    assert after.info["epochs"] == 3
    assert after.info["surgery"][0]["operation"] == "fold"


def test_a_deepened_network_is_written(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "deeper.safetensors"
    assert main(["surgery", "deepen", str(file), "--where", "blocks.0", "--out", str(out), "--json"]) == 0
    before, after = mlpconv.load(file), mlpconv.load(out)
    assert sum(p.numel() for p in after.model.parameters()) > sum(p.numel() for p in before.model.parameters())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fuse", "nin_tiny"], "convolutionalize, deepen, factorize, fold, pool_head"),
        (["fold", "nin_tinny"], "nin_tiny"),
        (["fold", "nin_tiny", "--input", "8x8"], "3x32x32"),
        (["deepen", "nin_tiny"], "--where"),
        (["fold", "nin_tiny", "--where", "blocks.0"], "--where belongs to deepen and factorize"),
        (["fold", "nin_tiny", "--init", "he"], "--init belongs to deepen"),
        (["fold", "nin_tiny", "--out", "a.safetensors"], "random weights"),
        (["fold", "nin_tiny", "--out", "absent/a.safetensors"], "folder that exists"),
        (["fold", "digits", "--out", "a.onnx"], "expected a model file, such as 'a.safetensors'"),
        (["pool_head", "nin_tiny", "--out", "a.safetensors"], "mlpconv.surgery.pool_head(mlpconv.load('nin_tiny')"),
        (["fold", "nin_tiny", "--images", "a.png"], "needs a model file"),
        (["fold", "nin_tiny", "--output", "1"], "--output belongs to convolutionalize and pool_head"),
        (["pool_head", "nin_tiny", "--output", "logits"], "one output, which needs no name"),
    ],
)
def test_invalid_commands_are_refused_in_one_line(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["surgery", *words]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", ["convolutionalize", "pool_head"])
def test_output_selects_one_of_several_outputs(
    operation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {"conv": nn.Conv2d(3, 5, 3), "animal": nn.Linear(5, 7), "weather": nn.Linear(5, 4)}
    network = Lambda(
        lambda m, x: {name: getattr(m, name)(m.conv(x).mean((2, 3))) for name in ("animal", "weather")}, **layers
    )
    monkeypatch.setattr(
        "mlpconv.inference.open_network.open_with_classifier", lambda _: (network.eval(), (3, 9, 7), None)
    )
    for words, name in (([], "animal"), (["--output", "weather"], "weather"), (["--output", "1"], "weather")):
        assert main(["surgery", operation, "two_heads", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["details"]["output"] == name


def test_an_unsupported_head_exits_with_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command is valid but the network is unsupported: one sentence and exit code 1."""
    model = mlpconv.create_model("nin_tiny", num_classes=2, in_channels=3, size=13, head="fc")
    preprocessing = mlpconv.Preprocessing.create(["scale"], 3, (13, 13))
    path = tmp_path / "model.safetensors"
    mlpconv.save(path, model, preprocessing, classes=("a", "b"), input_size=(3, 13, 13), info={})
    assert main(["surgery", "pool_head", str(path)]) == 1
    captured = capsys.readouterr()
    assert "head.1 (Linear) works on flattened maps" in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert main(["surgery", "convolutionalize", str(path)]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["surgery", "fold", "MODEL", "--out"],
        ["surgery", "factorize", "MODEL", "digits", "--out"],
        ["evaluate", "MODEL", "digits", "--split", "val", "--calibrate"],
    ],
    ids=lambda words: words[-1] + words[1],
)
def test_the_model_itself_is_not_overwritten(
    file: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    content = file.read_bytes()
    Path("link.safetensors").symlink_to(file)
    for model, target in ((str(file), "model.safetensors"), (".", "link.safetensors"), ("link.safetensors", str(file))):
        assert main([word.replace("MODEL", model) for word in words] + [target]) == 2
        assert f"{words[-1]} is {str(Path(target))!r}, the model itself, which would be lost" in capsys.readouterr().err
    assert file.read_bytes() == content


def test_the_name_of_a_shipped_network_is_a_model_file(tmp_path: Path) -> None:
    out = tmp_path / "folded.safetensors"
    assert main(["surgery", "fold", "nin_mnist", "--out", str(out)]) == 0
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    expected = mlpconv.load("nin_mnist").predict(image).probabilities
    np.testing.assert_allclose(mlpconv.load(out).predict(image).probabilities, expected, atol=1e-4)


def test_a_changed_network_of_timm_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = cast("nn.Module", object.__new__(TimmNetwork))
    monkeypatch.setattr("mlpconv.cli.surgery._open", lambda *_, **__: (network, (3, 8, 8), object()))
    assert main(["surgery", "fold", "tm", "--out", str(tmp_path / "a.safetensors")]) == 2
    assert (
        "hold a changed network of timm. In Python: mlpconv.surgery.fold(mlpconv.load('tm')" in capsys.readouterr().err
    )
