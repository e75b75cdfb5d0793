"""`mlpconv surgery factorize` reads a model file and images, and writes a report, a plot and a cheaper model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mlpconv
from mlpconv.cli import main


def photo(path: Path, index: int) -> None:
    """Write a smooth image of one of two classes: light at the top, or light at the bottom."""
    draw = np.random.default_rng(index)
    rows = np.linspace(0, 1, 13)[:, None, None] if index % 2 else np.linspace(1, 0, 13)[:, None, None]
    pixels = 200 * rows * draw.uniform(0.5, 1, (1, 1, 3)) + draw.normal(0, 9, (13, 13, 3)).cumsum(0).cumsum(1) / 9
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a model file, class folders of images, and a GoogLeNet."""
    folder = tmp_path_factory.mktemp("factorize")
    for name in ("a", "b"):
        (folder / "data" / name).mkdir(parents=True)
    for index in range(40):
        photo(folder / "data" / "ab"[index % 2] / f"{index:02}.png", index)
    torch.manual_seed(0)
    model = mlpconv.create_model("nin_tiny", num_classes=2, in_channels=3, size=13, norm=None, init="he")
    chain = mlpconv.Preprocessing.create(["scale"], 3, (13, 13))
    membership = mlpconv.open_data(folder / "data", size=13).membership
    info = {"epochs": 3, "validation": membership.to_dict() if membership else None}
    parts: dict[str, Any] = {"classes": ("a", "b"), "input_size": (3, 13, 13), "info": info}
    mlpconv.save(folder / "model.safetensors", model, chain, **parts)
    large = mlpconv.create_model("googlenet", num_classes=2, width=0.1, size=64)
    chain = mlpconv.Preprocessing.create(["scale"], 3, (64, 64))
    parts["input_size"] = (3, 64, 64)
    mlpconv.save(folder / "googlenet.safetensors", large, chain, **parts)
    return folder


@pytest.fixture
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(here)
    return here


def run(*words: str) -> int:
    return main(["surgery", "factorize", "model.safetensors", *words])


def test_labelled_data_give_a_cheaper_model_file(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "--budget", "0.4", "--out", "slim.safetensors", "--plot", "curve.png") == 0
    out = capsys.readouterr().out
    before, after = mlpconv.load("model.safetensors"), mlpconv.load("slim.safetensors")
    spent = [mlpconv.analysis.profile(each.model, (3, 13, 13)).totals.macs for each in (before, after)]
    assert 0.3 * spent[0] < spent[1] <= 0.4 * spent[0]
    for part in (
        f"{spent[1]:,}",
        "Classification error on 8 held-out images",
        "Calibrated on 32 training images of data, measured on 8 of the val split.",
        "blocks.1.convs.0",
        "32→48",
        "Written: curve.png",
        "Written: slim.safetensors",
    ):
        assert part in out
    assert after.classes == ("a", "b")
    assert after.info["epochs"] == 3
    done = after.info["surgery"][0]
    assert done["operation"] == "factorize" and done["details"]["budget"] == {"macs": 0.4}
    assert "curve" not in done["details"]
    with Image.open("curve.png") as picture:
        assert picture.size[0] > 600


def test_other_commands_accept_the_model_file(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "--budget", "0.5", "--out", "next.safetensors") == 0
    for words in (
        ["predict", "next.safetensors", "data/a/00.png"],
        ["evaluate", "next.safetensors", "data", "--split", "all"],
        ["profile", "next.safetensors"],
        ["maps", "next.safetensors", "data/a/00.png", "--out", "maps"],
        ["surgery", "fold", "next.safetensors", "--out", "folded.safetensors"],
    ):
        assert main(words) == 0, words
    capsys.readouterr()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 13, 13), dtype=np.uint8)
    one, other = (
        mlpconv.load(name).predict(pixels).probabilities for name in ("next.safetensors", "folded.safetensors")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert main(["surgery", "factorize", "next.safetensors", "data", "--out", "third.safetensors"]) == 2
    assert "factorized already" in capsys.readouterr().err


def test_images_without_labels_are_accepted(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--images", "data", "--calibrate", "20", "--of", "error", "--budget", "0.3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"].startswith("20 images: every fourth")
    assert found["details"]["budget"] == {"error": 0.3}
    assert found["details"]["error"]["after"]["output"] <= 0.3
    assert found["after"]["macs"] < found["before"]["macs"]
    assert found["details"]["curve"] == []


def test_images_are_spread_over_the_list(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = mlpconv.Classifier.pixels
    monkeypatch.setattr(mlpconv.Classifier, "pixels", lambda self, files: seen.extend(files) or plain(self, files))
    assert run("--images", "data", "--calibrate", "10", "--json") == 0
    assert len(seen) == 10
    assert {Path(file).parent.name for file in seen} == {"a", "b"}


def test_a_note_says_that_training_images_underestimate_the_error(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = mlpconv.load("model.safetensors")
    parts = {"classes": made.classes, "input_size": made.input_size, "info": {"recipe": {"val_fraction": 0.0}}}
    mlpconv.save("all.safetensors", made.model, made.preprocessing, **parts)
    assert main(["surgery", "factorize", "all.safetensors", "data", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)["images"]
    assert about.startswith("40 training images of data: every fourth held out")
    assert about.endswith("The error on unseen images is higher.")


def test_options_are_passed_on(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "--by", "weights", "--where", "blocks.1.convs.0", "--fine-tune", "2", "--budget", "0.9"]
    assert run(*words, "--calibrate", "16", "--held-out", "5", "--json") == 2  # 8 images or more
    assert "5 images; 8 or more" in capsys.readouterr().err
    assert run(*words, "--calibrate", "16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"] == ["blocks.1.convs.0"]
    assert found["details"]["by"] == "weights"
    assert "before_tuning" in found["details"]["error"]
    assert found["images"].startswith("Calibrated on 16 training images")


def test_the_plot_can_be_svg(inside: Path) -> None:
    assert run("--images", "data", "--plot", "curve.svg", "--json") == 0
    text = Path("curve.svg").read_text("utf-8")
    assert text.lstrip().startswith("<?xml") and "</svg>" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "needs calibration images"),
        (["data", "--images", "data"], "from one source"),
        (["data", "--of", "error"], "--of error needs --budget"),
        (["data", "--budget", "0"], "budget is 0.0"),
        (["data", "--fine-tune", "0"], "--fine-tune is 0"),
        (["data", "--plot", "curve.jpg"], ".png or .svg"),
        (["data", "--plot", "absent/curve.png"], "folder that exists"),
        (["data", "--out", "absent/m.safetensors"], "folder that exists"),
        (["data", "--where", "blocks.9"], "no layer is named 'blocks.9'"),
        (["data", "--init", "he"], "--init belongs to deepen"),
        (["data", "--input", "3x8x8"], "--input belongs to convolutionalize"),
        (["--images", "data", "--held-out", "9"], "need DATA"),
        (["--images", "data", "--of", "classes", "--budget", "0.1"], "need DATA"),
        (["--images", "absent.png"], "does not exist"),
    ],
    ids=" ".join,
)
def test_invalid_options_give_one_sentence(
    words: list[str], says: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(inside.iterdir())
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert sorted(inside.iterdir()) == before


def test_unsupported_output_is_refused_before_the_work(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["surgery", "factorize", "googlenet.safetensors", "data", "--out", "out.safetensors"]
    assert main(words) == 2
    assert "mlpconv.surgery.factorize(mlpconv.load('googlenet.safetensors').model, images)" in capsys.readouterr().err
    assert main(["surgery", "factorize", "torchvision:resnet18", "data"]) == 2
    assert "random ones" in capsys.readouterr().err
    assert main(["surgery", "fold", "model.safetensors", "data"]) == 2
    assert "DATA belongs to factorize; fold has no such option" in capsys.readouterr().err
    assert main(["surgery", "fold", "model.safetensors", "--budget", "0.5"]) == 2
    assert "--budget belongs to factorize" in capsys.readouterr().err
