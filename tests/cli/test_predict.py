"""`mlpconv predict`: files, folders and patterns in; names and confidences out; what cannot be read is named."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlpconv import inference, modelfile
from mlpconv.cli import main
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing

CLASSES = ("ant", "[bold]bee", "cat\x1b[31m", "dog", "eel")
SIZE = (3, 7, 11)


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> inference.Classifier:
    """A model file `m` and some images in the working folder; gives the classifier."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(6)
    model = create_model("nin_tiny", width=0.25, num_classes=5, in_channels=3)
    for tensor in model.state_dict().values():
        if tensor.dim() == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
    preprocessing = Preprocessing.create(["scale"], 3, SIZE[1:])
    modelfile.save("m", model, preprocessing, classes=CLASSES, input_size=SIZE, info={})
    dice = np.random.default_rng(6)
    Path("photos/deep").mkdir(parents=True)
    for name in ("a.png", "photos/b.png", "photos/c.jpg", "photos/deep/d.png", "photos/deep/é [x].bmp"):
        Image.fromarray(dice.integers(0, 256, (13, 17, 3), dtype=np.uint8)).save(name)
    return inference.load("m")


def run_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[dict[str, Any]]:
    assert main(["predict", *words, "--json"]) == code
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_one_image(album: inference.Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    expected = album.predict("a.png")[0]
    assert run_json(capsys, "m", "a.png") == [
        {
            "file": "a.png",
            "label": expected.label,
            "confidence": pytest.approx(expected.confidence),
            "top": [{"label": name, "confidence": pytest.approx(share)} for name, share in expected.top(3)],
        }
    ]


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["photos"], ["photos/b.png", "photos/c.jpg", "photos/deep/d.png", "photos/deep/é [x].bmp"]),
        (["photos", "--no-recursive"], ["photos/b.png", "photos/c.jpg"]),
        (["photos", "--recursive"], ["photos/b.png", "photos/c.jpg", "photos/deep/d.png", "photos/deep/é [x].bmp"]),
        (["photos/*.jpg", "a.png"], ["photos/c.jpg", "a.png"]),
        (["photos/deep/é [x].bmp"], ["photos/deep/é [x].bmp"]),
        (["photos/**/*.png", "a.png", "a.png"], ["photos/b.png", "photos/deep/d.png", "a.png", "a.png"]),
    ],
)
@pytest.mark.parametrize("batch_size", ["1", "2", "128"])
def test_files_folders_and_patterns(
    album: inference.Classifier,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    files: list[str],
    batch_size: str,
) -> None:
    found = run_json(capsys, "m", *words, "--batch-size", batch_size)
    assert [row["file"] for row in found] == files
    expected = album.predict(files)
    assert [row["label"] for row in found] == list(expected.labels)
    np.testing.assert_allclose([row["confidence"] for row in found], expected.confidences, rtol=1e-4)


@pytest.mark.parametrize("form", [["--json"], ["--csv", "-"], []])
def test_an_unreadable_file_is_reported_and_the_others_are_predicted(
    album: inference.Classifier, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    Path("photos/broken\x1b[31m.png").write_bytes(b"no image")
    Path("photos/empty.png").touch()
    assert main(["predict", "m", "photos", "--batch-size", "2", *form]) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 2
    assert "broken\\x1b[31m.png" in err
    assert "empty.png" in err
    assert "\x1b" not in err
    for name in ("b.png", "c.jpg", "d.png"):
        assert name in out
    assert "broken" not in out


def test_no_readable_file_is_an_error(album: inference.Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.png").write_bytes(b"no image")
    assert run_json(capsys, "m", "broken.png", code=1) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names that are no text exist on Linux only")
def test_a_file_name_that_is_not_text(album: inference.Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"photos/caf\xe9.png")
    os.rename("a.png", name)
    assert run_json(capsys, "m", name)[0]["file"] == name
    assert main(["predict", "m", name, "--csv", "out.csv"]) == 0
    assert b"photos/caf\xe9.png," in Path("out.csv").read_bytes()
    assert main(["predict", "m", name]) == 0
    assert "caf\\xe9.png" in capsys.readouterr().out


@pytest.mark.parametrize("top", [1, 2, 5, 9])
def test_csv(album: inference.Classifier, capsys: pytest.CaptureFixture[str], top: int) -> None:
    assert main(["predict", "m", "photos", "--top", str(top), "--csv", "out.csv"]) == 0
    assert capsys.readouterr() == ("", "")
    text = Path("out.csv").read_text(encoding="utf-8")
    assert main(["predict", "m", "photos", "--top", str(top), "--csv", "-"]) == 0
    assert capsys.readouterr().out == text
    rows = list(csv.DictReader(io.StringIO(text)))
    places = min(top, 5)
    assert len(rows[0]) == 1 + 2 * places
    for row, expected in zip(rows, album.predict([row["file"] for row in rows]), strict=True):
        best = expected.top(places)
        assert (row["label"], float(row["confidence"])) == (best[0][0], pytest.approx(best[0][1], rel=1e-4))
        if places > 1:
            last = best[-1]
            assert (row[f"label_{places}"], float(row[f"confidence_{places}"])) == (
                last[0],
                pytest.approx(last[1], rel=1e-4),
            )


def test_csv_and_json_together(album: inference.Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run_json(capsys, "m", "photos", "--csv", "out.csv")) == 4
    assert len(Path("out.csv").read_text().splitlines()) == 5
    assert main(["predict", "m", "photos", "--csv", "-", "--json"]) == 2
    assert "--csv a file" in capsys.readouterr().err


def test_predictions_are_printed_as_a_table(album: inference.Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    """Not cut to a width where there is no terminal; names are not read as markup and cannot write to a terminal."""
    long = Path("photos") / ("x" * 150 + ".png")
    os.rename("a.png", long)
    assert main(["predict", "m", "photos", "--top", "5"]) == 0
    out = capsys.readouterr().out
    assert str(long) in out
    assert "é [x].bmp" in out
    assert "[bold]bee" in out
    assert "cat\\x1b[31m" in out
    assert "\x1b" not in out
    assert f"{album.predict(long)[0].confidence:.1%}" in out


WRONG = [
    (["m"], "No images given"),
    (["m", "missing.png"], "'missing.png' does not exist"),
    (["m", "*.tiff"], "matches no image"),
    (["m", "a.png", "--csv", "--json"], "--csv is followed by --json: give it a file"),
    (
        ["m", "missing.png", "--csv", "missing/p.csv"],
        "The folder 'missing' does not exist: create it",
    ),
    (["no-model", "a.png", "--csv", "missing/p.csv"], "The folder 'missing' does not exist"),
    (["m", "a.png", "--csv", "photos"], "'photos' is a folder: give --csv a file."),
    (["m", "a.png", "--top", "0"], "--top is 0; expected an integer of at least 1"),
    (["m", "a.png", "--batch-size", "0"], "--batch-size is 0"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_usage_is_explained(
    album: inference.Classifier, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["predict", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_a_model_that_cannot_be_read(album: inference.Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "a.png", "a.png"]) == 1
    assert "pickle is never read" in capsys.readouterr().err


def test_a_wrong_model_is_reported_before_any_image_is_read(
    album: inference.Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "no-model", "missing.png"]) == 1
    assert "There is no file or folder 'no-model'" in capsys.readouterr().err


def test_other_files_in_a_folder_are_reported(
    album: inference.Classifier, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos/notes.txt", "photos/b.heic", "photos/deep/e.heic"):
        Path(name).touch()
    assert main(["predict", "m", "photos", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "mlpconv: ignored files that are not images: 2 .heic, 1 .txt.\n"
    assert len(json.loads(out)) == 4
    scandir = os.scandir

    def closed(folder: Path) -> Any:
        if Path(folder).name == "deep":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    found = run_json(capsys, "m", "photos", code=1)
    assert [row["file"] for row in found] == ["photos/b.png", "photos/c.jpg"]


def test_images_are_predicted_in_batches(album: inference.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are computed a batch at a time, as soon as it is read."""
    counts: list[int] = []
    compute = inference.Classifier.probabilities
    monkeypatch.setattr(
        inference.Classifier, "probabilities", lambda self, x, **k: (counts.append(len(x)), compute(self, x, **k))[1]
    )
    assert main(["predict", "m", "photos", "--batch-size", "3", "--json"]) == 0
    assert counts == [3, 1]


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--top", "--recursive", "--csv", "--json", "--batch-size", "--tta-flip", "quoted patterns"):
        assert word in out
    assert "--images" not in out
