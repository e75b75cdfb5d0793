"""Training from a model file of one's own: same, other and more classes, and what stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpconv
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.errors import ModelFileError, UsageError
from mlpconv.fitting import fit
from mlpconv.models.reconfigure import set_ranks
from mlpconv.models.registry import build
from mlpconv.training import Progress, Recipe

SIDE = 13
CLOCKS = {"images_per_second", "seconds", "cpu_seconds"}
SOURCE = Recipe(model="nin_tiny", width=0.25, norm="batch", epochs=6, batch_size=16, precision="fp32", lr=0.05)
TUNE: dict[str, Any] = {"tune": "all", "epochs": 3, "batch_size": 16, "precision": "fp32", "report": False}


def stripes(classes: int = 3, images: int = 53, seed: int = 0, first: int = 0) -> Dataset:
    """Noise with a bright stripe, whose row is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    pixels = rng.integers(0, 90, (images, 3, SIDE, SIDE), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[:, 2 * (label + first)] += 110
    return make_dataset("stripes", [f"row {first + i}" for i in range(classes)], {"train": Split(pixels, labels)})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("source") / "run"
    fit(stripes(), SOURCE, out=out, report=False)
    return out / "model.safetensors"


def state(path: Path) -> dict[str, torch.Tensor]:
    return dict(mlpconv.load(path).model.state_dict())


def test_other_classes_get_a_new_classifier_and_nothing_else_changes(source: Path) -> None:
    run = fit(stripes(classes=4, first=1), source=source, report=False)
    before, after = state(source), state(run.folder)
    changed = {name for name in after if after[name].shape != before[name].shape or (after[name] != before[name]).any()}
    assert changed == {"blocks.2.convs.2.weight", "blocks.2.convs.2.bias"}
    assert run.classifier.classes == ("row 1", "row 2", "row 3", "row 4")
    assert [row["epoch"] for row in run.history] == [0]
    assert run.classifier.info["metrics"]["train_accuracy"] > 0.8
    assert repr(run).startswith("<Run in 'runs/stripes-001': fitted classifier, val_accuracy")


def test_the_same_classes_continue_with_their_classifier(source: Path) -> None:
    run = fit(stripes(), source=source, **TUNE)
    known = mlpconv.load(source).info["metrics"]
    assert run.history[0]["val_accuracy"] == pytest.approx(known["val_accuracy"])
    assert run.history[0]["val_loss"] == pytest.approx(known["val_loss"], rel=1e-4)
    assert [row["epoch"] for row in run.history] == [0, 1, 2, 3]


def test_training_all_layers_keeps_the_statistics_of_norms(source: Path) -> None:
    run = fit(stripes(classes=2, first=3), source=source, **TUNE | {"val_fraction": 0})
    before, after = state(source), state(run.folder)
    statistics = {name for name in before if "running" in name}
    assert len(statistics) == 16
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    weights = [name for name in before if name.endswith("weight") and "convs.2" not in name]
    assert all(not torch.equal(before[name], after[name]) for name in weights)


def test_the_last_layers_alone(source: Path) -> None:
    run = fit(stripes(classes=2, first=3), source=source, **TUNE | {"tune": "last", "val_fraction": 0})
    before, after = state(source), state(run.folder)
    changed = {
        name.rpartition(".")[0]
        for name in before
        if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    layers = [name for name, module in mlpconv.load(source).model.named_modules() if module._parameters]
    assert changed == set(layers[-6:])  # of 17


def test_the_fitted_classifier_is_kept_where_epochs_make_it_worse(source: Path) -> None:
    run = fit(stripes(classes=3, first=2), source=source, **TUNE | {"lr": 1.5, "clip": 0.5, "epochs": 2})
    best = max(run.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert run.classifier.info["metrics"] == best
    head = fit(stripes(classes=3, first=2), source=source, report=False, precision="fp32")
    for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert run.history[0][key] == pytest.approx(head.history[0][key], rel=1e-4)


class Killed(Progress):
    """Stop after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, step: int, *_: Any) -> None:
        if step == self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_resumes_to_the_same_bits(source: Path, steps: int) -> None:
    data, settings = stripes(classes=4, first=1), TUNE | {"checkpoint_minutes": 0, "flip": "random"}
    whole = fit(data, source=source, out="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(data, source=source, out="part", progress=Killed(steps), **settings)
    resumed = fit(data, out="part", resume=True, report=False)
    assert [set(row.items()) - {(key, row[key]) for key in CLOCKS} for row in resumed.history] == [
        set(row.items()) - {(key, row[key]) for key in CLOCKS} for row in whole.history
    ]
    assert all(torch.equal(value, state(resumed.folder)[name]) for name, value in state(whole.folder).items())
    for key in ("recipe", "penalty", "views", "precision", "fingerprint"):
        assert resumed.classifier.info[key] == whole.classifier.info[key]


def test_added_classes_leave_the_old_ones_as_they_are(source: Path) -> None:
    data = stripes(classes=5, images=97)
    run = fit(data, source=source, add_classes=True, report=False)
    assert run.classifier.classes == ("row 0", "row 1", "row 2", "row 3", "row 4")
    images = data.split("train").images[:31]
    before, after = state(source), state(run.folder)
    assert torch.equal(after["blocks.2.convs.2.weight"][:3], before["blocks.2.convs.2.weight"])
    assert torch.equal(after["blocks.2.convs.2.bias"][:3], before["blocks.2.convs.2.bias"])
    model, old = mlpconv.load(run.folder), mlpconv.load(source)
    x = model.preprocessing(torch.from_numpy(np.array(images)))
    with torch.no_grad():  # more outputs are summed in another order
        torch.testing.assert_close(model.model(x)[:, :3], old.model(x), rtol=1e-5, atol=1e-6)
    assert run.classifier.info["metrics"]["train_accuracy"] > 0.8


def test_added_classes_come_after_the_known_ones(source: Path) -> None:
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    run = fit(stripes(classes=2, first=4), source=source, add_classes=True, report=False, progress=Notes())
    assert run.classifier.classes == ("row 0", "row 1", "row 2", "row 4", "row 5")
    assert any("no training images of the known classes" in text for text in notes)
    with pytest.raises(UsageError, match="has no class that the source lacks: leave out add_classes=True to fit all"):
        fit(stripes(classes=2), source=source, add_classes=True, report=False)


def test_sources_that_do_not_fit_are_refused(source: Path, tmp_path: Path) -> None:
    grey = make_dataset("grey", ("a", "b"), {"train": Split(np.zeros((9, 1, SIDE, SIDE), np.uint8), np.arange(9) % 2)})
    with pytest.raises(UsageError, match="grey has images of 1 channels, and .* expects 3"):
        fit(grey, source=source)
    for settings in ({"head": "fc"}, {"preprocessing": ("zca",)}):
        name = next(iter(settings))
        fit(stripes(), SOURCE, out=name, report=False, epochs=1, **settings)
    with pytest.raises(UsageError, match="has a fully connected head on all positions"):
        fit(stripes(classes=2), source="head")
    fit(stripes(), SOURCE, out="relu", report=False, epochs=1, last_relu=True)
    with pytest.raises(UsageError, match=r"relu has a ReLU after its class maps \(last_relu=True\)"):
        fit(stripes(classes=4), source="relu", add_classes=True)
    assert fit(stripes(classes=4), source="relu", out="fitted", report=False).classifier.model.config.last_relu is False
    small = np.zeros((9, 3, 11, 11), np.uint8)
    with pytest.raises(UsageError, match="ZCA whitening for images of 13x13: pass size=13"):
        fit(make_dataset("small", ("a", "b"), {"train": Split(small, np.arange(9) % 2)}), source="preprocessing")
    with pytest.raises(ModelFileError, match="nothing"):
        (tmp_path / "nothing").mkdir()
        fit(stripes(), source="nothing")
    assert not (tmp_path / "runs").exists()


def test_classes_of_one_and_two_images(source: Path) -> None:
    data = stripes(classes=3, images=31).split("train")
    rare = [*np.flatnonzero(data.labels == 0), 1, 2, 5]  # the others once and twice
    few = make_dataset("few", ("a", "b", "c"), {"train": Split(data.images[rare], data.labels[rare])})
    for fraction in (0.0, 0.3):
        run = fit(few, source=source, val_fraction=fraction, report=False)
        assert run.classifier.info["metrics"]["train_accuracy"] > 0.7
        assert all(np.isfinite(run.classifier.predict(data.images).probabilities).ravel())


def test_balance_weighs_classes_equally(source: Path) -> None:
    data = stripes(classes=2, images=60)
    rare = np.concatenate(
        [np.flatnonzero(data.split("train").labels == 0)[:4], np.flatnonzero(data.split("train").labels)]
    )
    images, labels = data.split("train").images[rare], data.split("train").labels[rare]
    noise = np.random.default_rng(2).integers(0, 200, images.shape, np.uint8)  # nothing to tell the classes apart by
    unequal = make_dataset("unequal", ("a", "b"), {"train": Split(noise, labels)})
    shares = []
    for balance in (False, True):
        for settings in ({"source": source}, {"recipe": SOURCE, "label_smoothing": 0.3}):
            run = fit(unequal, val_fraction=0, balance=balance, report=False, **settings)
            shares.append(run.classifier.predict(noise).probabilities[:, 0].mean())
    assert max(shares[:2]) < 0.2 < 0.35 < min(shares[2:])


def test_a_factorized_network_gets_a_whole_classifier(source: Path, tmp_path: Path) -> None:
    old = mlpconv.load(source)
    network = build(old.model.config.to_dict())
    set_ranks(network, {"blocks.2.convs.2": (2, 0)})
    factorized = build(network.config.to_dict())
    path = tmp_path / "factorized.safetensors"
    mlpconv.save(path, factorized, old.preprocessing, classes=old.classes, input_size=old.input_size, info={})
    run = fit(stripes(classes=4), source=path, report=False)
    assert run.classifier.model.last_layer.weight.shape == (4, factorized.num_features, 1, 1)
    with pytest.raises(UsageError, match="has a classifier of several layers"):
        fit(stripes(classes=4), source=path, add_classes=True)
