"""The weights that ship with the package: there, small, whole, and as good as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mlpconv
from mlpconv.data import Split
from mlpconv.data.as_trained import open_as_trained
from mlpconv.errors import DataError
from mlpconv.models.weights import WEIGHTS
from mlpconv.transfer.lineage import pretrained_on

TAUGHT = "nin_cifar10_taught"
SHIPPED = {"digits": 53_530, "nin_cifar10": 966_986, TAUGHT: 966_986, "nin_mnist": 349_674}
LARGEST = 4_000_000
BACKBONES = {"squeezenet": (1_235_496, 2_500_000), "efficientnet_lite0": (4_631_000, 9_500_000)}
"""Trained by others on ImageNet: parameters with batch norm folded, and the most bytes of the file."""
EVALUATED = Path(__file__).parents[1] / "benchmarks" / "results" / "nin_cifar10-40000.safetensors"
"""The recipe of nin_cifar10 on a part of the images, so that others are left to evaluate it on."""


def test_what_ships_is_what_is_promised():
    assert {path.stem for path in WEIGHTS.glob("*.safetensors")} == {*SHIPPED, *BACKBONES}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_is_plain_and_small_and_says_how_it_was_made(name: str):
    classifier = mlpconv.load(name)
    assert sum(parameter.numel() for parameter in classifier.model.parameters()) == SHIPPED[name]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in classifier.model.modules())
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size <= LARGEST
    assert classifier.info["recipe"]["seed"] == classifier.info["seed"]
    assert len(classifier.info["fingerprint"]) == 64
    validation = classifier.info["shipped"]["validation"]
    assert 0 < validation["error_interval"][0] < validation["error"] < validation["error_interval"][1] < 0.1


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_plain_and_small_and_says_who_made_it(name: str):
    classifier, (parameters, size) = mlpconv.load(name), BACKBONES[name]
    assert sum(parameter.numel() for parameter in classifier.model.parameters()) == parameters
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in classifier.model.modules())
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size <= size
    assert len(classifier.classes) == 1000 and len(classifier.info["wordnet_ids"]) == 8000
    about = classifier.info["shipped"]
    assert about["source"] and about["licence"] in ("BSD-2-Clause", "Apache-2.0")
    assert f"{name}.safetensors" in (WEIGHTS / "NOTICE.txt").read_text("utf-8")


@pytest.mark.parametrize("name", [*SHIPPED, EVALUATED])
def test_a_shipped_network_is_as_good_as_it_says(name: str | Path):
    classifier = mlpconv.load(name)
    try:
        splits = open_as_trained(classifier.info["data"], None, classifier).splits
    except DataError:
        pytest.skip("the images it was trained on are not in the cache")
    unseen = splits.get("val", splits.get("test"))
    split = unseen or splits["train"]
    some = Split(split.images[:500], split.labels[:500])  # a part is enough to see a wrong weight
    found, expected = mlpconv.evaluate(classifier, some).error, classifier.info["shipped"]["validation"]["error"]
    assert abs(found - expected) < 0.035 if unseen else found < expected


def test_the_taught_network_says_what_its_teacher_saw_and_names_no_folder_of_a_machine():
    info = mlpconv.load(TAUGHT).info
    assert pretrained_on(info) == info["teacher"]["pretrained_on"] == "ImageNet"
    assert info["recipe"]["teacher"] == info["teacher"]["name"] == "runs/teacher"
    assert info["train_images"] == mlpconv.load(EVALUATED).info["train_images"]
    assert info["shipped"]["validation"]["error"] < 0.06


def test_what_was_trained_on_all_images_has_the_figures_of_the_same_recipe_on_a_part():
    shipped, evaluated = mlpconv.load("nin_cifar10").info, mlpconv.load(EVALUATED).info
    assert shipped["shipped"]["validation"] == evaluated["shipped"]["validation"]
    assert evaluated["shipped"]["validation"]["train_images"] == evaluated["train_images"] < shipped["train_images"]
    assert shipped["recipe"] | {"val_fraction": 0.2} == evaluated["recipe"]
    assert shipped["data"] == evaluated["data"]
