"""A folder that has the name of a published data set is a folder like any other."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlpconv.cli import main
from mlpconv.data import Split, make_dataset, open_data
from mlpconv.data.as_trained import open_as_trained, recorded_data
from mlpconv.data.catalog import CATALOG, is_published
from mlpconv.data.validation import with_validation
from mlpconv.errors import DataError, ModelFileError, UsageError
from mlpconv.inference import load
from mlpconv.inference.open_network import open_with_classifier
from mlpconv.search.searching import base_recipe
from mlpconv.training import Recipe, find_recipe
from mlpconv.training.network import make_model
from mlpconv.training.run_data import data_name, published_name
from mlpconv.training.session import data_summary, model_info
from mlpconv.transfer.choose import is_automatic
from mlpconv.transfer.source import open_source

SIDE = 8


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    return tmp_path


def write_folder(top: Path) -> Path:
    """Two classes of six colour images."""
    rng = np.random.default_rng(0)
    for name in ("light", "dark"):
        (top / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 90, (SIDE, SIDE, 3), np.uint8) + 150 * (name == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(top / name / f"{index}.png")
    return top


def write_shard(top: Path) -> Path:
    """A tar of the same images, in a folder of this name."""
    images = write_folder(top.with_name("images"))
    top.mkdir()
    with tarfile.open(top / "000.tar", "w") as tar:
        for number, path in enumerate(sorted(images.rglob("*.png"))):
            for suffix, content in ((".png", path.read_bytes()), (".cls", path.parent.name.encode())):
                member = tarfile.TarInfo(f"{number}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return top


@pytest.mark.parametrize("name", CATALOG)
def test_folders_have_no_recipe_network_or_split_of_a_published_set(here: Path, name: str) -> None:
    folder = write_folder(here / name)
    dataset = open_data(folder)
    assert (dataset.name, dataset.published, data_name(folder)) == (name, False, name)
    for data in (folder, f"./{name}", Path(name), dataset):
        assert published_name(data) is None
    assert is_automatic(Path(name), None, None, {})
    assert make_model(dataset, Recipe(), torch.device("cpu")).config.name == "nin_tiny"
    assert data_summary(dataset)["published"] is False
    assert recorded_data(model_info(dataset, Recipe())) == Path(name)
    images = Split(np.zeros((20, 3, SIDE, SIDE), np.uint8), np.repeat([0, 1], 10))
    held = with_validation(make_dataset(name, ("a", "b"), {"train": images}), 0.2, 0).split("val")
    assert sorted(held.labels) == [0, 0, 1, 1]  # drawn from each class, not the last images


def test_shards_in_a_folder_of_that_name_too(here: Path) -> None:
    folder = write_shard(here / "cifar10")
    for spec in (folder, "./cifar10", "cifar10/*.tar"):
        dataset = open_data(spec)
        assert (dataset.name, dataset.published, published_name(spec)) == ("cifar10", False, None)
    assert make_model(dataset, Recipe(), torch.device("cpu")).config.name == "nin_tiny"


def test_the_published_set_keeps_its_recipe_and_network() -> None:
    digits = open_data("digits", size=12)  # also when it is resized
    assert (digits.published, published_name(digits), published_name("digits")) == (True, "digits", "digits")
    assert recorded_data(model_info(digits, Recipe())) == "digits"
    assert recorded_data({"data": "cifar10"}) == "cifar10"  # shipped weights
    assert recorded_data({"data": "cifar10", "published": False}) is None
    assert recorded_data({"data": "x" * 5000}) is None
    assert recorded_data({}) is None
    assert find_recipe("fast", "digits") != find_recipe("fast")
    assert base_recipe(None, "digits") == find_recipe("fast", "digits")
    with pytest.raises(UsageError, match="recipe 'paper' is for .*, not for this data"):
        find_recipe("paper")
    assert is_published("digits")
    assert not is_published(Path("digits"))


def test_the_name_alone_is_the_published_set_and_a_note_says_so(here: Path) -> None:
    write_folder(here / "digits")
    dataset = open_data("digits")
    assert dataset.classes == tuple("0123456789")
    assert "digits is the published data set, not the folder of this name here: write ./digits" in dataset.notes[-1]


def test_a_published_set_that_is_not_there_names_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(here / "cache"))
    write_folder(here / "mnist")
    with pytest.raises(DataError, match="mnist not found: .* mnist is the published .* write ./mnist for the folder"):
        open_data("mnist")


def test_a_run_on_such_a_folder(here: Path) -> None:
    write_folder(here / "mnist")
    words = ["--recipe", "fast", "--epochs", "1", "--set", "width=0.2", "precision=fp32"]
    assert main(["train", "./mnist", "--out", "run", *words]) == 0
    recipe, expected = json.loads(Path("run/recipe.json").read_text()), find_recipe("fast").to_dict()
    asked = {"epochs", "min_steps", "width", "precision", "flip", "virtual_shards"}
    assert {key for key in recipe if recipe[key] != expected[key]} == asked
    assert load("run").model.config.name == "nin_tiny"
    assert len(open_as_trained(Path("mnist"), None, load("run")).split("val")) == 2
    assert "model.safetensors FOLDER" in Path("run/report.html").read_text()


def test_a_model_that_does_not_know_the_published_classes_is_told_of_the_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(here / "photos")
    words = ["--recipe", "fast", "--epochs", "1", "--set", "width=0.2", "precision=fp32"]
    assert main(["train", "./photos", "--out", "b", *words]) == 0
    capsys.readouterr()
    write_folder(here / "digits")
    assert main(["evaluate", "b", "digits"]) == 1
    said = capsys.readouterr().err
    assert "does not know the classes '0', '1', '2', '3', '4', ... of the published data set digits; it knows " in said
    assert "give a folder with images of those classes." in said
    assert "write ./digits for the folder" in said
    assert "rename" not in said
    assert main(["evaluate", "b", "./digits", "--split", "all"]) == 0


def test_a_folder_that_is_not_the_published_set_names_it(here: Path) -> None:
    (here / "cifar10").mkdir()
    for data in ("cifar10/", Path("cifar10")):
        with pytest.raises(DataError, match="has no class folders.* For the published data set, write cifar10 alone"):
            open_data(data)


def test_a_folder_without_a_model_does_not_hide_a_network(here: Path) -> None:
    write_folder(here / "digits")
    write_folder(here / "nin_tiny")
    assert load("digits").classes == tuple("0123456789")
    assert open_source("digits").classifier.classes == tuple("0123456789")
    assert open_with_classifier("nin_tiny")[2] is None
    (here / "digits" / "recipe.json").write_text("{}")  # a run that has not finished
    with pytest.raises(
        ModelFileError, match="has no model.safetensors: give a model file or a finished run, or rename"
    ):
        load("digits")


def test_no_name_is_not_the_current_folder(here: Path) -> None:
    write_folder(here)
    assert open_data(".").classes == ("dark", "light")
    with pytest.raises(UsageError, match="the name of the data is empty"):
        open_data("")
    with pytest.raises(ModelFileError, match="There is no file or folder ''"):
        load("")


def test_a_file_that_hides_a_network_says_so(here: Path) -> None:
    (here / "squeezenet").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="'squeezenet' .* Rename it to use the shipped network squeezenet."):
        load("squeezenet")
    (here / "digits.onnx").write_bytes(b"a graph")
    with pytest.raises(ModelFileError, match="'digits.onnx' .* An exported file is run by `mlpconv predict` and"):
        load("digits.onnx")
    (here / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(ModelFileError) as caught:
        load("model.safetensors")
    assert "shipped" not in str(caught.value)
