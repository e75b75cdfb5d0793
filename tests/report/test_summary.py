"""What a run leaves to look at: the right split is judged, every picture is there, and an unwritable folder says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mlpconv
from mlpconv.data import make_dataset
from mlpconv.errors import RunFolderError
from mlpconv.inference import Classifier
from mlpconv.preprocessing import Preprocessing
from mlpconv.report.summary import MAP_IMAGES, samples, summarise

ROWS = [
    {"epoch": e, "step": e * 3, "train_loss": 2 / e, "train_accuracy": 0.1 * e, "val_loss": 2.1 / e,
     "val_accuracy": 0.1, "lr": 0.1, "images_per_second": 100.0, "seconds": 1.0 * e, "cpu_seconds": 2.0 * e}
    for e in (1, 2)
]  # fmt: skip


def data(*names: str) -> mlpconv.Dataset:
    draw = np.random.default_rng(0)
    splits = {}
    for offset, name in enumerate(names):
        labels = np.arange(17, dtype=np.int64) % 3
        splits[name] = mlpconv.Split(draw.integers(0, 256, (17 - offset, 1, 8, 8), np.uint8), labels[: 17 - offset])
    return make_dataset("small", ["a", "<script>", "c"], splits)


def classifier(head: str = "gap") -> Classifier:
    model = mlpconv.create_model("nin_tiny", num_classes=3, head=head, size=8)
    chain = Preprocessing.create(["scale"], 1, (8, 8)).fit(np.zeros((2, 1, 8, 8), np.uint8))
    return Classifier(model, chain, ("a", "<script>", "c"), (1, 8, 8), {})


@pytest.mark.parametrize(
    ("splits", "judged", "count"),
    [(("train", "val", "test"), "val", 16), (("train", "test"), "test", 16), (("train",), "train", 17)],
)
def test_validation_images_are_judged_else_test_else_training(
    tmp_path: Path, splits: tuple[str, ...], judged: str, count: int
) -> None:
    evaluation = summarise(tmp_path, classifier(), data(*splits), ROWS)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["split"] == judged
    assert written["n"] == evaluation.n == count


def test_every_picture_and_the_page_are_there(tmp_path: Path) -> None:
    summarise(tmp_path, classifier(), data("train", "val"), ROWS)
    pictures = {}
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as picture:
            pictures[path.name] = picture.size
    assert set(pictures) == {"confusion.png", "curves.png", "filters.png", "maps.png", "mistakes.png"}
    assert min(min(size) for size in pictures.values()) > 50
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_a_fully_connected_head_has_no_picture_of_maps(tmp_path: Path) -> None:
    summarise(tmp_path, classifier("fc"), data("train"), ROWS)
    assert not (tmp_path / "figures" / "maps.png").exists()
    assert (tmp_path / "report.html").exists()


def test_samples_are_the_first_image_of_each_of_the_first_classes() -> None:
    labels = np.array([2, 2, 0, 1, 0], np.int64)
    assert samples(mlpconv.Split(np.zeros((5, 1, 2, 2), np.uint8), labels)) == [0, 2, 3]
    many = np.arange(40, dtype=np.int64)
    assert len(samples(mlpconv.Split(np.zeros((40, 1, 2, 2), np.uint8), many))) == MAP_IMAGES


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file is in the way")
    with pytest.raises(RunFolderError, match=r"the model file is complete"):
        summarise(tmp_path, classifier(), data("train"), ROWS)
