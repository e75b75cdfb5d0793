"""The source of a folder is chosen by validation accuracy, and anything that a user decides is not chosen again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mlpconv
from mlpconv.cli import main
from mlpconv.data import Split, make_dataset
from mlpconv.errors import UsageError
from mlpconv.report.choice import candidate_rows, choice_lines
from mlpconv.training import Progress, Recipe
from mlpconv.transfer.choose import SourceChoice, is_automatic, size_for, unchosen_note, unlike_photographs
from mlpconv.transfer.start import Started

COUNT = 11


@pytest.fixture(autouse=True)
def short_pilots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpconv.fitting.PILOT_STEPS", 3)


def draw(folder: Path, side: int, noise: float) -> Path:
    """Two classes: a light bar, vertical or horizontal, with noise."""
    rng = np.random.default_rng(0)
    for name in ("down", "across"):
        (folder / name).mkdir(parents=True)
        for index in range(COUNT):
            image = np.full((side, side), 30.0)
            image[:, side // 3 + index % 3 : side // 2 + index % 3] = 200
            image = image.T if name == "across" else image
            pixels = (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_photographs_get_pretrained_features(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(here / "photos", 41, noise=12)
    assert main(["train", "photos", "--minutes", "0", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "validation accuracy 100.00%" in said
    assert "start from efficientnet_lite0: the images look like photographs" in said
    choice = json.loads((here / "run" / "choice.json").read_text())
    assert [(row["source"], row["size"], row["images"]) for row in choice["candidates"]] == [
        ("squeezenet", 128, 4),
        ("efficientnet_lite0", 224, 4),
    ]
    recipe = json.loads((here / "run" / "recipe.json").read_text())
    assert (recipe["source"], recipe["tune"], recipe["size"]) == ("efficientnet_lite0", "head", 224)
    report = (here / "run" / "report.html").read_text()
    assert "Initial weights" in report
    assert "<td>squeezenet</td>" in report
    assert "a fitted classifier" in report
    before = mlpconv.load("run").model.last_layer.weight
    assert main(["train", "photos", "--from", "auto", "--out", "run", "--resume"]) == 0  # the choice stands
    assert "squeezenet" not in capsys.readouterr().out
    assert bool((mlpconv.load("run").model.last_layer.weight == before).all())


def test_drawings_are_compared_with_training_from_random_weights(here: Path) -> None:
    draw(here / "signs", 9, noise=0)
    run = mlpconv.fit("signs", progress=Progress(), report=False)
    choice = json.loads((run.folder / "choice.json").read_text())
    assert [row["source"] for row in choice["candidates"]] == ["squeezenet", "efficientnet_lite0", "scratch"]
    assert choice["candidates"][-1]["pilot"] is True
    best = max(row["correct"] for row in choice["candidates"])
    assert choice["source"] == [row["source"] for row in choice["candidates"] if row["correct"] == best][-1]
    assert "unlike photographs (they have 9x9 pixels)" in choice["reason"]


def test_the_depth_of_training_is_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    data = make_dataset("x", ("a", "b"), {"train": Split(np.zeros((4, 3, 8, 8), np.uint8), np.arange(4) % 2)})
    fitted = {"tune": "head", "size": 224, "flip": "none"}
    choice = SourceChoice("squeezenet", fitted, "why", (), data, Started({}, {}, None))
    assert choice.settle({"seed": 3}) == (fitted | {"seed": 3}, choice)
    assert choice.settle({"seed": 3, "tune": "head"}) == (fitted | {"seed": 3}, choice)
    settings, left = choice.settle({"seed": 3, "tune": "last"})
    assert settings == {"seed": 3, "tune": "last", "flip": "none"}
    assert (left.source, left.dataset, left.started) == ("squeezenet", None, None)
    random = SourceChoice("scratch", {}, "why", (), data)
    assert random.settle({"seed": 3, "tune": "last"}) == ({"seed": 3}, random)
    assert main(["train", "digits", "--tune", "all"]) == 2
    assert "--tune all needs pretrained weights: name them, --from NETWORK" in capsys.readouterr().err


def test_a_bad_value_is_refused_before_anything_is_computed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(here / "photos", 9, noise=12)
    assert main(["train", "photos", "--tune", "most"]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("mlpconv: tune='most' is not accepted; ")
    assert "candidate" not in out


@pytest.mark.parametrize(
    ("data", "recipe", "source", "settings", "named"),
    [
        ("photos", None, None, {"seed": 1, "size": 32}, "size=32"),
        ("photos", "fast", None, {"size": 32}, "recipe='fast'"),
        ("photos", None, "scratch", {"size": 32}, None),
        ("photos", None, None, {"teacher": "runs/a"}, None),
        ("digits", "fast", None, {}, None),
        ("photos", None, None, {"seed": 1}, None),
    ],
)
def test_a_setting_that_leaves_pretrained_networks_out_is_named(
    data: str, recipe: str | None, source: str | None, settings: dict[str, object], named: str | None
) -> None:
    note = unchosen_note(data, recipe, source, settings)
    assert (
        note is None if named is None else (note or "").startswith(f"with {named} the network is trained from random")
    )


def test_without_validation_images_nothing_is_compared(here: Path) -> None:
    draw(here / "photos", 41, noise=12)
    run = mlpconv.fit("photos", progress=Progress(), report=False, val_fraction=0)
    choice = json.loads((run.folder / "choice.json").read_text())
    assert (choice["source"], choice["candidates"]) == ("efficientnet_lite0", [])
    assert run.classifier.info["metrics"]["val_accuracy"] is None


def test_a_folder_with_content_is_refused_before_anything_is_computed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(here / "photos", 41, noise=12)
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("keep")
    monkeypatch.setattr("mlpconv.fitting.choose", lambda *_: pytest.fail("computed"))
    assert main(["train", "photos", "--out", "full"]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "recipe", "source", "settings", "expected"),
    [
        ("photos", None, None, {}, True),
        (Path("photos"), None, None, {"seed": 3, "precision": "fp32", "device": "cpu", "val_fraction": 0.1}, True),
        ("photos", None, "auto", {"fit": "pad"}, True),
        ("photos", None, None, {"tune": "all"}, True),
        ("digits", None, "auto", {}, True),
        ("photos", "fast", None, {}, False),
        ("photos", Recipe(), None, {}, False),
        ("photos", None, None, {"epochs": 1}, False),
        ("photos", None, None, {"model": "nin_tiny"}, False),
        ("photos", None, None, {"size": 32}, False),
        ("photos", None, "scratch", {}, False),
        ("photos", None, "squeezenet", {}, False),
        ("digits", None, None, {}, False),
        ("cifar10", None, None, {"seed": 1}, False),
    ],
)
def test_only_a_folder_without_settings_of_training_is_chosen_for(
    data: str | Path, recipe: str | Recipe | None, source: str | None, settings: dict[str, object], expected: bool
) -> None:
    assert is_automatic(data, recipe, source, settings) is expected


def test_a_dataset_is_never_resized_to_choose() -> None:
    data = make_dataset("x", ("a", "b"), {"train": Split(np.zeros((4, 3, 8, 8), np.uint8), np.arange(4) % 2)})
    assert not is_automatic(data, None, None, {})
    with pytest.raises(UsageError, match="a Dataset has one size"):
        is_automatic(data, None, "auto", {})


def test_photographs_differ_from_pixel_to_pixel() -> None:
    rng = np.random.default_rng(1)

    def why(images: np.ndarray) -> str | None:
        return unlike_photographs(Split(images, np.zeros(len(images), np.int64)))

    photo = rng.integers(0, 256, (7, 3, 37, 31), np.uint8)
    assert why(photo) is None
    assert why(photo[..., :15, :]) == "they have 15x31 pixels"
    drawing = photo.copy()
    drawing[:, :, :, :15] = 255
    assert why(drawing) == "47% of their neighbouring pixels are equal"
    drawing[:, 0] = photo[:, 0]  # noise in one channel is no area of one colour
    assert why(drawing) is None


def test_large_sets_get_smaller_images() -> None:
    assert [size_for("efficientnet_lite0", images) for images in (1, 5000, 5001, 20_000, 20_001)] == [
        224, 224, 160, 160, 128,
    ]  # fmt: skip
    assert size_for("squeezenet", 1) == 128


def test_the_table_of_candidates_has_intervals() -> None:
    rows = [
        {"source": "squeezenet", "size": 128, "correct": 45, "images": 50, "seconds": 2.0, "pilot": False},
        {"source": "scratch", "size": 8, "correct": 48, "images": 50, "seconds": 31.25, "pilot": True},
    ]
    choice = {"source": "scratch", "reason": "it is the best", "candidates": [*rows, {"source": "x"}, "junk", None]}
    assert candidate_rows(choice) == [
        ("squeezenet", "128", "90.00%", "78.6% to 95.7%", "2.0"),
        ("scratch (pilot)", "8", "96.00%", "86.5% to 98.9%", "31.2"),
    ]
    lines = list(choice_lines(choice))
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3] == "start from scratch: it is the best"
    assert list(choice_lines({"source": "a", "reason": "b", "candidates": 3})) == ["start from a: b"]
