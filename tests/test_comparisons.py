"""The comparisons of transfer learning are paired, and mosaics and their quarters are what they say."""

from __future__ import annotations

from pathlib import Path

import comparisons
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import mlpconv
from mlpconv.receptive_field.map_grid import trace_grid

compare_transfer = pytest.importorskip("compare_transfer", reason="needs scikit-learn", exc_type=ImportError)
COUNTS = {"ash": 37, "birch": 41}


def folder_of(top: Path, offset: int = 0) -> Path:
    """A folder of two classes, each image of one colour of its own."""
    for label, (name, count) in enumerate(COUNTS.items()):
        (top / name).mkdir(parents=True)
        for number in range(count):
            colour = (100 * label + number, offset, 7 * number % 251)
            Image.new("RGB", (7, 7), colour).save(top / name / f"{number:05d}.png")
    return top


def case_of(tmp_path: Path, per_class: int = 13, seed: int = 1) -> compare_transfer.Case:
    folder, test = folder_of(tmp_path / "folder"), folder_of(tmp_path / "test", 200)
    data = compare_transfer.split_folder(folder, tmp_path / "split", per_class, seed)
    return compare_transfer.Case(folder, test, data, per_class, seed, {}, None)


def test_the_rows_of_a_split_are_the_images_of_its_files(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    rows = compare_transfer.rows_of(case, "pixels")
    for part, pixels, labels in (("train", rows.train[0], rows.train_labels), ("val", rows.val, rows.val_labels)):
        files = sorted((case.data / part).glob("*/*.png"))
        assert len(files) == len(pixels) == len(labels) == 2 * (13 if part == "train" else 20)
        read = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(pixels, read.reshape(len(files), -1) / 255, atol=1e-6)
        assert labels.tolist() == [list(COUNTS).index(file.parent.name) for file in files]
    assert len(rows.test) == sum(COUNTS.values())
    assert not {bytes(row) for row in rows.train[0]} & {bytes(row) for row in rows.val}


def test_models_of_pixels_learn_what_pixels_tell(tmp_path: Path) -> None:
    case = case_of(tmp_path)
    for method in (compare_transfer.pixels, compare_transfer.neighbours):
        row = method(case)
        assert row["accuracy"] == row["test"] == 1, method.__name__


def test_differences_are_taken_on_common_splits() -> None:
    ours = {"0": {"test": 0.9}, "1": {"test": 0.8}, "2": {"test": 0.85}, "7": {"test": 0.1}}
    theirs = {"0": {"test": 0.88}, "1": {"test": 0.79}, "2": {"test": 0.80}, "4": {"test": 1.0}}
    mean, half, count = comparisons.paired_difference(ours, theirs)
    low, high = stats.ttest_rel([0.9, 0.8, 0.85], [0.88, 0.79, 0.80]).confidence_interval()
    assert count == 3
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert comparisons.paired_difference(ours, {"0": {"test": 0.9}}) == (0, None, 1)


RESULT = {
    "grey, 100 a class, head": {"0": {"test": 0.7, "cpu_seconds": 15.0}, "1": {"test": 0.8}},
    "grey, 100 a class, scikit-learn": {"0": {"test": 0.7}, "1": {"test": 0.79}},
    "grey, 10 a class, head": {"0": {"test": 0.5, "cpu_seconds": 0.25}},
}


ONE = {"grey, 10 a class, head": {"3": {"test": 0.5}}, "grey, 10 a class, scikit-learn": {"3": {"test": 0.5}}}


def test_the_table_has_a_row_for_each_method() -> None:
    facts = {"date": "2026-01-01", "machine": {"cpu": "abacus"}}
    table = comparisons.comparison_table({"result": RESULT} | facts)
    assert "2026-01-01, one thread of an abacus;" in table
    assert "| grey | 10 | **mlpconv, `--tune head`** | 50.0% |  | < 1 | 1 |" in table
    assert "| grey | 80 | **mlpconv, `--tune head`** | 75.0% ± 7.1 |  | 15 | 2 |" in table
    assert "| +0.0 from `head` (n = 1) |" in comparisons.comparison_table({"result": ONE} | facts)
    assert "| 74.5% ± 6.4 | -0.5 ± 6.4 from `head` (n = 2) |  | 2 |" in table


def test_an_aim_is_reached_in_its_time_or_missed() -> None:
    result = {
        "colour, 100 a class, head": {"0": {"test": 0.93, "cpu_seconds": 15.0}},
        "colour, 100 a class, all": {"0": {"test": 0.96, "cpu_seconds": 181.0}},
        "grey, 100 a class, all": {"0": {"test": 0.81, "cpu_seconds": 121.0}},
    }
    rows = comparisons.aims_table(result).splitlines()[3:]
    assert rows == [
        "| colour | 80 | 92% in 30 s | reached: 93.0% in 15 s, `--tune head` |",
        "| colour | 80 | 95% in 180 s | missed: 93.0% in 15 s, `--tune head` |",
        "| grey | 80 | 80% in 120 s | missed: 81.0% in 121 s, `--tune all` |",
        "| colour | 10 | 75% in 10 s | not measured |",
    ]


def test_the_figure_shows_every_method_that_has_seconds() -> None:
    (axes,) = comparisons.draw_comparison(RESULT).axes
    assert axes.get_title(loc="left") == "grey, ten classes"
    (line,) = (line for line in axes.lines if line.get_label().startswith("_") is False or len(line.get_xdata()) == 2)
    assert list(line.get_xdata()) == [0.25, 15.0] and list(line.get_ydata()) == [50.0, 75.0]
    assert [text.get_text() for text in axes.texts] == ["10", "80"]


def test_a_mosaic_has_an_image_of_each_class_in_its_quarter() -> None:
    pointing = pytest.importorskip("pointing", reason="needs captum", exc_type=ImportError)
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * 30 + np.zeros((7, 3, 5, 5), np.uint8)
    mosaics = pointing.make_mosaics(images, np.arange(7), 22, 13, seed=3)
    for image, classes in zip(mosaics.images, mosaics.classes, strict=True):
        assert len(set(classes.tolist())) == 4
        for quarter, label in enumerate(classes):
            row, column = divmod(quarter, 2)
            assert (image[:, row * 11 : row * 11 + 11, column * 11 : column * 11 + 11] == 30 * label).all()


def test_exact_maps_are_grad_cam_of_the_layer_before_the_classifier() -> None:
    pointing = pytest.importorskip("pointing", reason="needs captum", exc_type=ImportError)
    torch.manual_seed(0)
    network = mlpconv.create_model("squeezenet", num_classes=5, last_relu=False).eval()
    grid = trace_grid(network, (3, 67, 67))
    x = torch.randn(1, 3, 67, 67)
    methods = pointing.methods_of(network, "features.10")
    exact, grad_cam = (methods[name](x, [4, 1, 2]) for name in ("exact maps", "Grad-CAM, same layer"))
    bias = network.last_layer.bias[[4, 1, 2], None, None].detach()
    cells = exact.shape[1] * exact.shape[2]
    torch.testing.assert_close((exact - bias).relu() / cells, grad_cam, rtol=1e-4, atol=1e-6)
    values = np.zeros((3, 3), np.float32)
    assert pointing.quarter_of(values, grid, 67) is None
    values[2, 0] = 1
    assert pointing.quarter_of(values, grid, 67) == 2
