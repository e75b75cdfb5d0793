"""The outputs of frozen layers, computed once: the same training as with the layers in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpconv
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.data.sampler import Sampler
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Progress, Recipe, frozen_outputs
from mlpconv.training.freeze import freeze_all_but_last
from mlpconv.training.frozen_outputs import FrozenOutputs, frozen_stages
from mlpconv.training.health import is_constant
from mlpconv.training.step import BatchLoader, autocast

SIDE, IMAGES, UNSEEN = 37, 19, 11
LAST = Recipe(source="squeezenet", tune="last", flip="random", batch_size=7)
TUNE: dict[str, Any] = {"tune": "last", "epochs": 3, "batch_size": 7, "precision": "fp32", "report": False}
NETWORKS = ("squeezenet", "efficientnet_lite0", "nin_cifar10")


def bars() -> Dataset:
    """Noise with a bright edge, on the left or at the top: no image is its own flip."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (IMAGES + UNSEEN, 3, SIDE, SIDE), np.uint8)
    labels = np.arange(len(pixels), dtype=np.int64) % 2
    pixels[labels == 0, :, :, :9] += 120
    pixels[labels == 1, :, :9] += 120
    splits = {"train": Split(pixels[:IMAGES], labels[:IMAGES]), "val": Split(pixels[IMAGES:], labels[IMAGES:])}
    return make_dataset("bars", ("left", "top"), splits)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))


class Noted(Progress):
    """Keeps the notes, and stops in a step."""

    def __init__(self, stop: int = 0) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[int, int]] = []
        self.stop = stop

    def features(self, done: int, total: int) -> None:
        self.done.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, step: int, *_: Any) -> None:
        if step == self.stop:
            raise KeyboardInterrupt


def network(name: str) -> mlpconv.models.Network:
    model = mlpconv.create_model(name, pretrained=True).to(memory_format=torch.channels_last)
    model.reset_classifier(2)
    freeze_all_but_last(model)
    return model


def computed(
    model: mlpconv.models.Network, recipe: Recipe = LAST, precision: str = "fp32"
) -> tuple[FrozenOutputs | None, BatchLoader]:
    data, preprocessing = bars(), Preprocessing.create(("standardize",), 3, (SIDE, SIDE))
    preprocessing.fit(data.split("train").images)
    train, sampler = data.split("train"), Sampler(IMAGES, recipe.batch_size, recipe.seed)
    loader = BatchLoader(train, preprocessing, recipe, sampler, 30)
    return FrozenOutputs.compute(model, preprocessing, train, data.splits["val"], recipe, precision), loader


@pytest.mark.parametrize("name", NETWORKS[:2])
def test_training_is_the_same_as_with_all_layers_in_every_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, noted = bars(), Noted()
    once = mlpconv.fit(data, source=name, out="once", progress=noted, flip="random", **TUNE)
    assert [text for text in noted.notes if text.startswith("the frozen layers ran once for each image and its flip: ")]
    seen = 2 * IMAGES + UNSEEN
    assert noted.done == 2 * [(IMAGES, seen), (2 * IMAGES, seen), (seen, seen)]  # classifier, then frozen layers
    monkeypatch.setattr("mlpconv.training.frozen_outputs.frozen_stages", lambda *_: 0)
    plain = mlpconv.fit(data, source=name, out="plain", progress=(noted := Noted()), flip="random", **TUNE)
    assert not any("frozen" in text for text in noted.notes)
    for row, expected in zip(once.history, plain.history, strict=True):
        assert row["train_accuracy"] == expected["train_accuracy"]
        for key in ("train_loss", "val_loss"):
            assert row[key] == pytest.approx(expected[key], rel=1e-3)
    before, after = (max(Path(run, "checkpoints").glob("step-*")) / "model.safetensors" for run in ("plain", "once"))
    assert before.stat().st_size == after.stat().st_size


@pytest.mark.parametrize("flip", ["none", "random", "alternate"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_has_the_outputs_for_the_images_that_it_would_have(name: str, flip: str) -> None:
    model, recipe = network(name), LAST.with_settings(flip=flip)
    frozen, loader = computed(model, recipe)
    assert frozen is not None and frozen.stages > 1
    assert len(frozen.train) == (1 if flip == "none" else 2)
    for step in (0, 1, 5):
        loader.frozen = None
        images, labels, _ = loader(step)
        loader.frozen = frozen
        outputs, same_labels, _ = loader(step)
        assert torch.equal(labels, same_labels)
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(frozen.logits(model, outputs), model(images), rtol=1e-4, atol=1e-4)
    val = torch.from_numpy(bars().splits["val"].images[3:8])
    with torch.no_grad():
        expected = model(loader.preprocessing(val))
        torch.testing.assert_close(frozen.logits(model, frozen.validation(slice(3, 8))), expected, rtol=1e-4, atol=1e-4)


def test_outputs_in_bf16_train_in_bf16_and_are_checked_in_fp32() -> None:
    model = network("efficientnet_lite0")
    frozen, loader = computed(model, precision="bf16")
    assert frozen is not None and frozen.train.dtype == torch.bfloat16
    loader.frozen = frozen
    outputs = loader(0).images
    with autocast("bf16", torch.device("cpu")):
        logits, auxiliary = frozen.forward(model, outputs)
    logits.float().logsumexp(1).sum().backward()
    assert auxiliary == [] and model.last_layer.weight.grad is not None
    assert not is_constant(model, outputs, frozen.logits)


@pytest.mark.parametrize(
    "changed",
    [
        {"crop": 3}, {"cutout": 5}, {"mixup": 0.2}, {"sizes": (23, 37)}, {"tune": "all"}, {"engine": "compile"},
        {"on_collapse": "repair"}, {"virtual_shards": 2},
    ],
)  # fmt: skip
def test_layers_run_in_every_step_where_their_outputs_change_or_are_shared(changed: dict[str, Any]) -> None:
    model = network("squeezenet")
    assert frozen_stages(model, LAST) > 5
    assert frozen_stages(model, LAST.with_settings(**changed)) == 0


def test_a_stage_with_dropout_or_a_trained_weight_is_not_frozen() -> None:
    model = mlpconv.create_model("nin_cifar10", dropout=0.5).requires_grad_(False)
    assert frozen_stages(model, LAST) == 1  # the first mlpconv layer; dropout follows
    model = mlpconv.create_model("nin_cifar10", dropout=0.0).requires_grad_(False)
    assert frozen_stages(model, LAST) == len(model.stages)
    model.blocks[1].convs[0].bias.requires_grad_(True)
    assert frozen_stages(model, LAST) == 2
    assert frozen_stages(mlpconv.create_model("googlenet").requires_grad_(False), LAST) == 0  # no stages


def test_outputs_that_take_too_much_memory_are_computed_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, _ = computed(network("squeezenet"))
    assert frozen is not None
    monkeypatch.setattr(frozen_outputs, "MAX_BYTES", frozen.nbytes)
    assert computed(network("squeezenet"))[0] is not None
    monkeypatch.setattr(frozen_outputs, "MAX_BYTES", frozen.nbytes - 1)
    assert computed(network("squeezenet"))[0] is None


def test_a_run_resumes_to_the_same_bits() -> None:
    settings: dict[str, Any] = TUNE | {"source": "squeezenet", "flip": "random", "checkpoint_minutes": 0}
    whole = mlpconv.fit(bars(), out="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        mlpconv.fit(bars(), out="part", progress=Noted(stop=4), **settings)
    resumed = mlpconv.fit(bars(), out="part", resume=True, **settings)
    assert [row["val_loss"] for row in resumed.history] == [row["val_loss"] for row in whole.history]
    last = [max(Path(name, "checkpoints").glob("step-*")) / "model.safetensors" for name in ("whole", "part")]
    assert last[0].read_bytes() == last[1].read_bytes()
