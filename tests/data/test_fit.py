"""Elongated images are cropped, padded or stretched consistently in training, prediction and maps."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import mlpconv
from mlpconv.cli import main
from mlpconv.data import open_data
from mlpconv.data.as_trained import open_as_trained
from mlpconv.data.decode import decode
from mlpconv.decode_options import FITS, DecodeOptions
from mlpconv.errors import UsageError
from mlpconv.maps import Box, Peak, in_file
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Recipe
from mlpconv.training.network import make_model
from mlpconv.training.run_data import load_dataset, make_preprocessing

WIDE = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None], 30, axis=0)  # (30, 120), darker on the left


def saved(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_crop_pad_and_stretch_show_the_expected_pixels() -> None:
    crop, pad, stretch = (
        decode(saved(WIDE), size=(20, 20), decode_options=DecodeOptions(fit))[0].astype(int) for fit in FITS
    )
    assert (crop[0, 0], crop[0, -1]) == pytest.approx((90, 148), abs=4)
    assert (stretch[0, 0], stretch[0, -1]) == pytest.approx((4, 234), abs=4)
    assert np.array_equal(np.flatnonzero(pad.std(axis=1) > 1), [7, 8, 9, 10, 11])
    assert (pad[9, 0], pad[9, -1]) == pytest.approx((4, 234), abs=4)
    assert pad[0, 0] == pytest.approx(WIDE.mean(), abs=2)
    tall = [
        decode(saved(np.ascontiguousarray(WIDE.T)), size=(20, 20), decode_options=DecodeOptions(fit))[0].T
        for fit in FITS
    ]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(tall, (crop, pad, stretch), strict=True))


@pytest.mark.parametrize("fit", FITS)
def test_colour_is_padded_with_the_mean_of_each_channel(fit: str) -> None:
    image = np.zeros((8, 40, 3), np.uint8) + np.array([200, 100, 0], np.uint8)
    assert (
        decode(saved(image), size=(16, 16), decode_options=DecodeOptions(fit)) == np.array([200, 100, 0])[:, None, None]
    ).all()


def put(folder: Path, height: int, width: int, count: int = 5) -> Path:
    rng = np.random.RandomState(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.randint(0, 256, (height, width, 3)).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("sides", "fit"),
    [((30, 30), "crop"), ((30, 40), "crop"), ((40, 60), "crop"), ((30, 60), "stretch"), ((120, 30), "stretch")],
)
def test_the_aspect_ratio_decides_the_default_fit(tmp_path: Path, sides: tuple[int, int], fit: str) -> None:
    data = open_data(put(tmp_path / "x", *sides))
    assert data.decode_options.fit == fit
    assert [open_data(tmp_path / "x", fit=name).decode_options.fit for name in FITS] == list(FITS)


def test_the_note_says_how_much_is_cropped(tmp_path: Path) -> None:
    folder = put(tmp_path / "x", 30, 120)
    Image.new("RGB", (300, 30)).save(folder / "a" / "long.png")
    notes = "\n".join(open_data(folder, fit="crop").notes)
    assert "the centre is kept, which cuts off 75% of the median image and 90% of the longest (setting: fit)" in notes
    assert "the aspect ratio changes, which avoids cutting off 75% of the median" in "\n".join(open_data(folder).notes)
    assert "cuts off" not in "\n".join(open_data(put(tmp_path / "y", 30, 30), size=20).notes)


@pytest.mark.parametrize("fit", FITS)
def test_a_model_decodes_images_as_in_training(tmp_path: Path, fit: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "x", 30, 120)
    recipe = Recipe(model="nin_tiny", fit=fit, val_fraction=0)
    data = load_dataset(folder, recipe, None)
    model, preprocessing = make_model(data, recipe, torch.device("cpu")), make_preprocessing(data, recipe)
    mlpconv.save(tmp_path / "m", model, preprocessing, classes=data.classes, input_size=(3, 32, 32), info={})
    classifier = mlpconv.load(tmp_path / "m")
    files = sorted(folder.glob("*/*.png"))
    assert np.array_equal(classifier.pixels(files).numpy(), data.split("train").images)
    assert np.array_equal(classifier.pixels([Image.open(file) for file in files]).numpy(), data.split("train").images)
    assert np.array_equal(classifier.pixels([file.read_bytes() for file in files]).numpy(), data.split("train").images)
    assert open_as_trained(str(folder), None, classifier).fingerprint == data.fingerprint
    assert main(["maps", str(tmp_path / "m"), str(files[0]), "--json", "--out", str(tmp_path / "maps")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"]
    result = mlpconv.category_maps(classifier, files[0])
    peak = result.top(0, 1)[0].peak
    assert peak is not None
    assert row["classes"][0]["peak"] == in_file(peak, (32, 32), (30, 120), fit)._asdict()


def test_a_data_set_keeps_its_own_fit(tmp_path: Path) -> None:
    data = open_data(put(tmp_path / "x", 30, 120), fit="pad")
    assert load_dataset(data, Recipe(fit="pad"), None).decode_options.fit == "pad"
    with pytest.raises(UsageError, match="fit=stretch has no effect on a Dataset"):
        load_dataset(data, Recipe(fit="stretch"), None)


@pytest.mark.parametrize(
    ("decode_options", "version"), [(DecodeOptions(), 1), (DecodeOptions("pad"), 3), (DecodeOptions(bits=12), 3)]
)
def test_default_decode_options_keep_the_model_file_version(
    tmp_path: Path, decode_options: DecodeOptions, version: int
) -> None:
    preprocessing = Preprocessing.create(["scale"], 1, (8, 8), decode_options)
    model = create_model("nin_tiny", num_classes=2, in_channels=1)
    mlpconv.save(tmp_path / "m", model, preprocessing, classes=("a", "b"), input_size=(1, 8, 8), info={})
    with safe_open(tmp_path / "m", "numpy") as file:
        document = json.loads(file.metadata()["mlpconv"])
    assert document["version"] == version
    assert set(document["preprocessing"]) - {"steps", "channels", "size"} == set(decode_options.to_dict())
    assert mlpconv.load(tmp_path / "m").preprocessing.decode_options == decode_options


@pytest.mark.parametrize(
    ("fit", "point", "expected"),
    [
        ("crop", Peak(9.5, 9.5), Peak(59.5, 14.5)),
        ("crop", Peak(-0.5, -0.5), Peak(44.5, -0.5)),
        ("stretch", Peak(-0.5, -0.5), Peak(-0.5, -0.5)),
        ("stretch", Peak(19.5, 19.5), Peak(119.5, 29.5)),
        ("pad", Peak(9.5, 9.0), Peak(59.5, 14.5)),
        ("pad", Peak(-0.5, 7.0), Peak(-0.5, 2.5)),
        ("pad", Peak(4.0, 0.0), Peak(26.5, -0.5)),
    ],
)
def test_positions_map_back_to_the_file(fit: str, point: Peak, expected: Peak) -> None:
    """A 30 x 120 image becomes 20 x 20: its centre, all of it on five rows, or all of it stretched."""
    assert in_file(point, (20, 20), (30, 120), fit) == pytest.approx(expected)


def test_boxes_map_back_to_the_file() -> None:
    whole = Box(0, 0, 20, 20)
    assert [in_file(whole, (20, 20), (30, 120), fit) for fit in FITS] == [
        Box(45, 0, 75, 30),
        Box(0, 0, 120, 30),
        Box(0, 0, 120, 30),
    ]
