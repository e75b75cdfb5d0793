"""`mlpconv.fit`: the run folder it writes, the arguments it refuses, and how it resumes."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpconv.fitting
import mlpconv.training.session
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.errors import CheckpointError, DataError, MissingSplit, MlpconvError, RunFolderError, UsageError
from mlpconv.fitting import fit
from mlpconv.inference import load
from mlpconv.training import Progress, Recipe, checkpoint, run_data
from mlpconv.training.progress import COLUMNS

TINY = Recipe(model="nin_tiny", epochs=2, width=0.2, batch_size=16, precision="fp32")


class Notes(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def colours(
    n: int = 33,
    size: tuple[int, int] = (9, 9),
    channels: int = 3,
    name: str = "colours",
    seed: int = 0,
    classes: int = 3,
) -> Dataset:
    """Return images with a bright stripe whose position is the class; no validation split."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = draw.integers(0, 100, (n, channels, *size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, label % size[0]] += 150
    return make_dataset(name, [f"class {i}" for i in range(classes)], {"train": Split(images, labels)})


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Work in an empty folder, and skip figures and report unless a test requests `pictures`."""
    monkeypatch.chdir(tmp_path)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(mlpconv.fitting, "summarise", lambda *_: None)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def pictures() -> None:
    """Request the figures and the report, which take most of the time of a short run."""


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def bits(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


# --- the content of a run folder


@pytest.mark.parametrize(
    "data", ["somewhere/shards/*.tar", "somewhere/shards/{00..07}.tar", "somewhere/shards/", "shards"]
)
def test_a_run_on_shards_is_named_after_their_folder(data: str) -> None:
    assert run_data.data_name(data) == "shards"


def test_a_run_on_digits_writes_model_metrics_and_report(pictures: None):
    run = fit("digits", TINY, seed=3)
    assert run.folder == Path("runs/digits-001")
    names = files(run.folder)
    settled = {
        "model.safetensors",
        "metrics.csv",
        "recipe.json",
        "environment.json",
        "data.json",
        "evaluation.json",
        "report.html",
    }
    assert settled <= names
    assert {f"figures/{name}.png" for name in ("curves", "confusion", "mistakes", "maps", "filters")} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert Recipe(**json.loads((run.folder / "recipe.json").read_text())) == TINY.with_settings(
        seed=3, virtual_shards=1
    )

    facts = json.loads((run.folder / "data.json").read_text())
    assert facts["name"] == "digits"
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["counts"]["train"] + facts["counts"]["val"] + facts["counts"]["test"] == 1797
    with open(run.folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [float(row["val_accuracy"]) for row in rows] == [row["val_accuracy"] for row in run.history]
    judged = json.loads((run.folder / "evaluation.json").read_text())
    best = max(run.history, key=lambda row: row["val_accuracy"])
    assert judged["split"] == "val"
    assert 1 - judged["error"] == pytest.approx(best["val_accuracy"], abs=1e-9)
    assert "data:image/png" in (run.folder / "report.html").read_text()
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["precision"] == "fp32"
    assert environment["versions"]["torch"] == torch.__version__


def test_the_returned_classifier_equals_the_model_file():
    data = colours()
    run = fit(data, TINY)
    again = load(run.folder / "model.safetensors")
    images = data.split("train").images[:5]
    assert run.classifier.classes == again.classes == data.classes
    np.testing.assert_array_equal(run.classifier.predict(images).probabilities, again.predict(images).probabilities)
    assert again.info["metrics"] == max(run.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert again.info["recipe"] == json.loads((run.folder / "recipe.json").read_text())
    assert again.info["fingerprint"] == data.fingerprint
    assert tuple(again.input_size) == (3, 9, 9)


@pytest.mark.parametrize(("share", "name"), [(0.2, "val"), (0, "train")])
def test_the_repr_of_a_run_has_folder_epoch_and_accuracy(share: float, name: str):
    run = fit(colours(), TINY, out="mine", val_fraction=share)
    kept = run.classifier.info["metrics"]
    accuracy = kept[f"{name}_accuracy"]
    assert repr(run) == f"<Run in 'mine': epoch {kept['epoch']} of 2, {name}_accuracy {accuracy:.4f}>"


def test_equal_recipes_give_identical_weights_and_another_seed_does_not():
    runs = [
        fit(colours(), TINY, dropout=0.3, flip="random", crop=1, **more) for more in ({}, {"workers": 2}, {"seed": 1})
    ]
    assert [str(run.folder) for run in runs] == [f"runs/colours-00{number}" for number in (1, 2, 3)]
    weights = [dict(load(run.folder / "model.safetensors").model.state_dict()) for run in runs]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[2]["blocks.0.convs.0.weight"], weights[0]["blocks.0.convs.0.weight"])


def test_the_validation_split_is_held_out_of_the_training_images():
    data = colours(40)
    run = fit(data, TINY, val_fraction=0.25)
    facts = json.loads((run.folder / "data.json").read_text())
    assert facts["counts"] == {"train": 30, "val": 10}
    assert facts["fingerprint"] == data.fingerprint
    means = run.classifier.preprocessing.state_dict()["steps.0.mean"]
    train = run_data.load_dataset(data, TINY.with_settings(val_fraction=0.25), None).split("train").images
    torch.testing.assert_close(means.flatten(), torch.from_numpy(train.mean((0, 2, 3)) / 255).float())


def test_without_validation_the_last_epoch_is_kept():
    run = fit(colours(), TINY, val_fraction=0)
    assert [row["val_accuracy"] for row in run.history] == [None, None]
    assert run.classifier.info["metrics"]["epoch"] == 2


def test_an_ema_that_is_never_updated_is_noted():
    notes = Notes()
    fit(colours(), TINY, epochs=1, ema=0.9, ema_every=500, progress=notes)
    assert any(text.startswith("ema_every=500 is more than the") for text in notes.texts)


def test_small_sets_get_more_epochs():
    run = fit(colours(20), TINY, val_fraction=0.2, batch_size=4, min_steps=30)
    assert len(run.history) == 6  # of 17 images, five steps each
    assert json.loads((run.folder / "recipe.json").read_text())["epochs"] == 6


@pytest.mark.parametrize("name", ["a/b", "../../etc", "..", "", "a\0b", "ein Haus"])
def test_any_name_of_a_data_set_gives_a_folder_in_runs(tmp_path: Path, name: str):
    run = fit(colours(name=name), TINY, epochs=1)
    assert (tmp_path / "runs").resolve() == run.folder.resolve().parent
    assert files(tmp_path) == {f"runs/{run.folder.name}/{file}" for file in files(run.folder)}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "muon", "whiten": True, "norm": "batch", "ema": 0.9, "sizes": (7, 9), "label_smoothing": 0.1},
        {
            "optimizer": "adamw",
            "lr": 0.001,
            "mixup": 0.2,
            "cutout": 3,
            "clip": 1.0,
            "schedule": "cosine",
            "warmup": 0.1,
        },
        {"head": "fc+dropout", "dropout": 0.2, "preprocessing": ("gcn", "zca"), "norm": "none", "activation": "maxout"},
        {"model": "conv_cifar10", "width": 0.05, "pool2": "avg", "last_relu": False, "init": "he", "precision": "auto"},
        {"model": "googlenet", "width": 0.05, "precision": "bf16", "epochs": 1},
    ],
)
def test_every_kind_of_setting_trains_and_loads(settings: dict[str, Any]):
    data = colours(size=(32, 32) if settings.get("model") == "googlenet" else (9, 9))
    run = fit(data, TINY, **settings)
    assert np.isfinite(run.classifier.predict(data.split("train").images[:3]).probabilities).all()
    assert all(np.isfinite(row["train_loss"]) for row in run.history)


def test_the_first_layer_is_whitened_with_images_of_every_class(monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(mlpconv.training.session, "WHITENING_VALUES", 3 * 9 * 9 * 12)
    monkeypatch.setattr(mlpconv.training.session, "whiten", lambda _layer, images: seen.append(images))
    data = colours(99)
    order = np.argsort(data.split("train").labels, kind="stable")  # as a folder of class folders is read
    split = data.split("train")
    fit(
        make_dataset("sorted", data.classes, {"train": Split(split.images[order], split.labels[order])}),
        TINY,
        whiten=True,
        epochs=1,
    )
    assert seen[0].shape == (12, 3, 9, 9)
    assert len(set(seen[0].mean((1, 3)).argmax(1).tolist())) == 3


def test_notes_of_the_data_reach_the_user():
    data = colours()
    noted = Dataset(data.name, data.classes, data.splits, ("two files were skipped",), data.fingerprint)
    notes = Notes()
    fit(noted, TINY, epochs=1, progress=notes)
    assert "two files were skipped" in notes.texts
    assert any(text.startswith("precision fp32") for text in notes.texts)


# --- resuming


def test_a_folder_with_a_run_is_refused_and_unchanged():
    run = fit(colours(), TINY)
    before = bits(run.folder)
    with pytest.raises(RunFolderError, match="is not empty"):
        fit(colours(), TINY, out=run.folder)
    assert bits(run.folder) == before


def test_a_run_started_before_the_lock_is_taken_is_not_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    out = tmp_path / "mine"
    real = mlpconv.fitting.RunFolder.lock

    def slow(folder: Any) -> Any:
        monkeypatch.setattr(mlpconv.fitting.RunFolder, "lock", real)
        fit(colours(), TINY, out=out, seed=1)  # another process, between the check of the folder and the lock
        return real(folder)

    monkeypatch.setattr(mlpconv.fitting.RunFolder, "lock", slow)
    with pytest.raises(RunFolderError, match="is not empty"):
        fit(colours(), TINY, out=out, seed=2)
    assert json.loads((out / "recipe.json").read_text())["seed"] == 1


def test_resuming_a_finished_run_changes_nothing():
    data = colours()
    first = fit(data, TINY)
    before = bits(first.folder)
    for settings in ({}, {"workers": 1, "checkpoint_minutes": 1.0}, {"epochs": 2}):
        again = fit(data, resume=True, **settings)
        assert again.folder == first.folder
        assert again.history == first.history
        assert bits(first.folder) == before
    images = data.split("train").images
    np.testing.assert_array_equal(
        again.classifier.predict(images).probabilities, first.classifier.predict(images).probabilities
    )


def test_the_same_arguments_with_resume_are_accepted():
    data, recipe = colours(20), TINY.with_settings(epochs=1, min_steps=7, batch_size=8, flip="auto")
    first = fit(data, recipe, lr=0.01)
    assert len(first.history) == 3
    assert fit(data, recipe, lr=0.01, resume=True).history == first.history


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        (None, {"lr": 0.5}, r"started with lr=0\.05, got lr=0\.5"),
        (None, {"epochs": 3}, "epochs=2, got epochs=3"),
        (None, {"seed": 1}, "seed=0, got seed=1"),
        (None, {"val_fraction": 0.5}, "val_fraction"),
        (TINY.with_settings(momentum=0.5), {}, r"momentum=0\.9, got momentum=0\.5"),
        (TINY, {"batch_size": 8}, "batch_size"),
    ],
)
def test_a_changed_setting_is_refused_on_resume(recipe: Recipe | None, settings: dict[str, Any], words: str):
    run = fit(colours(), TINY)
    before = bits(run.folder)
    with pytest.raises(RunFolderError, match=words):
        fit(colours(), recipe, resume=True, **settings)
    assert bits(run.folder) == before


def test_an_unknown_setting_is_refused_on_resume():
    fit(colours(), TINY)
    with pytest.raises(UsageError, match="unknown recipe setting 'lrr': did you mean 'lr'"):
        fit(colours(), resume=True, lrr=1)


@pytest.mark.parametrize("other", [colours(seed=1), colours(34), colours(classes=4)])
def test_other_images_are_refused_on_resume(other: Dataset):
    fit(colours(), TINY)
    with pytest.raises(RunFolderError, match="was trained on other images .fingerprints differ"):
        fit(other, resume=True)


@pytest.mark.parametrize("out", [None, "mine", "deep/down"])
def test_resume_without_a_run_starts_one_with_a_note(tmp_path: Path, out: str | None):
    notes, again = Notes(), Notes()
    first = fit(colours(), TINY, out=out, resume=True, progress=notes)
    where = Path(out or "runs/colours-001")
    assert f"There is nothing to resume in {where} yet: starting a new run." in notes.texts
    assert fit(colours(), TINY, out=out, resume=True, progress=again).history == first.history
    assert not any("nothing to resume" in text for text in again.texts)


def test_a_folder_of_other_files_is_refused_and_unchanged(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"contains no run .no recipe.json.; it contains thesis.txt"):
        fit(colours(), TINY, resume=True, out=tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


# --- bit-exact resume


def test_the_recorded_dtype_is_used_before_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch):
    auto = TINY.with_settings(precision="auto")
    chosen = iter(["bf16", "bf16", "fp32", "fp32"])  # a timer that flips
    monkeypatch.setattr(mlpconv.training.session, "choose_precision", lambda *_: (next(chosen), "precision, as timed"))
    straight = fit(colours(), auto, out="straight")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlpconv.training.session.Trainer, "run", die)  # killed before the first step
        with pytest.raises(KeyboardInterrupt):
            fit(colours(), auto, out="killed")
    notes = Notes()
    killed = fit(colours(), auto, out="killed", resume=True, progress=notes)
    assert "precision bf16, as at the start of this run" in notes.texts
    weights = [load(run.folder / "model.safetensors").model.state_dict() for run in (straight, killed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    environment = json.loads((killed.folder / "environment.json").read_text())
    assert environment["precision"] == "bf16"


def test_a_changed_environment_is_reported_on_resume(monkeypatch: pytest.MonkeyPatch):
    run = fit(colours(), TINY)
    path = run.folder / "environment.json"
    then = json.loads(path.read_text())
    for damage, words in (
        (
            {"threads": 977},
            r"This run started with threads 977, and continues with \d+: the result may differ in the last bits",
        ),
        ({"cpu": "another"}, "This run started with cpu another, and continues with"),
        ({"versions": {"torch": "0"}}, "This run started with torch 0, and continues with"),
        ({"versions": None}, "This run started with torch None"),
    ):
        notes = Notes()
        path.write_text(json.dumps(then | damage))
        fit(colours(), resume=True, progress=notes)
        assert [text for text in notes.texts if re.match(words, text)], notes.texts
    path.write_text("{")
    assert fit(colours(), resume=True).history == run.history


# --- epochs and min_steps


@pytest.mark.parametrize(
    ("recipe", "settings", "epochs"),
    [
        (TINY.with_settings(min_steps=30), {}, 15),  # of 27 images, two steps each
        (TINY.with_settings(min_steps=30), {"epochs": 3}, 3),
        (TINY.with_settings(min_steps=30), {"epochs": 3, "min_steps": 8}, 4),
        (TINY.with_settings(min_steps=30), {"min_steps": 8}, 4),
        (TINY.with_settings(min_steps=30), {"epochs": 1, "lr": 0.01}, 1),
        ("mine.json", {}, 15),
        ("mine.json", {"epochs": 3}, 3),
        ("fast", {"epochs": 1, "model": "nin_tiny", "width": 0.2, "batch_size": 16}, 1),
    ],
)
def test_epochs_override_the_min_steps_of_a_recipe(recipe: Any, settings: dict[str, Any], epochs: int):
    mine = TINY.with_settings(min_steps=30).to_dict()
    Path("mine.json").write_text(json.dumps({"settings": mine}))
    run = fit(colours(), recipe, **settings)
    assert len(run.history) == epochs
    for again in ({}, settings, {"epochs": epochs}):
        assert len(fit(colours(), resume=True, **again).history) == epochs
    assert len(fit(colours(), recipe, resume=True, **settings).history) == epochs
    with pytest.raises(RunFolderError, match=f"started with epochs={epochs}, got epochs=7"):
        fit(colours(), resume=True, epochs=7)


# --- the random states of the caller


def draws() -> list[float]:
    """Return the next number of every global random generator."""
    return [float(torch.rand(1)), float(np.random.random_sample()), random.random()]  # noqa: NPY002


@pytest.mark.parametrize("ends", ["well", "in an error", "in a collapse"])
def test_the_random_states_of_the_caller_do_not_change(ends: str):
    def search() -> list[float]:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        return draws()

    expected = [*search(), *draws()]
    found = search()
    if ends == "well":
        fit(colours(), TINY, dropout=0.5, mixup=0.3, epochs=1)
    elif ends == "in an error":
        with pytest.raises(UsageError):
            fit(colours(), TINY, head="fc", sizes=(7, 9))
    else:
        with pytest.raises(MlpconvError):
            fit(colours(), TINY, lr=1e6, momentum=0.99, epochs=50, schedule="constant")
    assert [*found, *draws()] == expected


def test_an_unused_gpu_is_not_seeded(monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    fit(colours(), TINY, dropout=0.5, epochs=1)
    assert seeds == []
    torch.manual_seed(1)
    assert seeds == [1]


def test_a_run_without_checkpoints_restarts():
    first = fit(colours(), TINY)
    weights = first.classifier.model.state_dict()
    for path in (first.folder / "checkpoints").rglob("*"):
        path.is_file() and path.unlink()
    for path in (first.folder / "checkpoints").iterdir():
        path.rmdir()
    again = fit(colours(), resume=True)
    assert [row["val_loss"] for row in again.history] == [row["val_loss"] for row in first.history]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.classifier.model.state_dict().items())


def test_only_damaged_checkpoints_are_an_error():
    run = fit(colours(), TINY)
    for path in (run.folder / "checkpoints").glob("*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match="no intact checkpoint is left in .*start a new run"):
        fit(colours(), resume=True)


@pytest.mark.parametrize("content", ['{"lr": 5e9}', '{"self": 1}', "[]", '{"__class__": 1}', ""])
def test_a_damaged_recipe_of_a_run_is_an_error(content: str):
    run = fit(colours(), TINY)
    (run.folder / "recipe.json").write_text(content)
    with pytest.raises(MlpconvError) as caught:
        fit(colours(), resume=True)
    assert isinstance(caught.value, RunFolderError | UsageError)


# --- arguments refused before anything is written


IMPOSSIBLE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too small": (colours(size=(2, 2)), {"model": "nin_imagenet"}, "nin_imagenet got a size of 2x2; .* at least 39x39"),
    "too small on one side": (colours(size=(40, 2)), {"model": "nin_imagenet"}, "size of 40x2; .* at least 39x39"),
    "too small on the way": (colours(size=(64, 64)), {"model": "nin_imagenet", "sizes": (3, 64)}, "at least"),
    "another size on the way": (colours(), {"head": "fc", "sizes": (7, 9)}, "9x9"),
    "sizes of what is no square": (colours(size=(9, 11)), {"sizes": (7, 9)}, "9x11"),
    "another size than the Dataset's": (colours(), {"size": 13}, "size=13"),
    "zca too large": (colours(size=(64, 64)), {"preprocessing": ("zca",)}, "zca"),
    "unknown step": (colours(), {"preprocessing": ("gcnn",)}, "gcn"),
    "no step": (colours(), {"preprocessing": ()}, "at least one"),
    "step twice": (colours(), {"preprocessing": ("gcn", "gcn")}, "more than once"),
    "unknown model": (colours(), {"model": "nin_cifar11"}, "nin_cifar10"),
    "unknown activation": (colours(), {"activation": "rellu"}, "relu"),
    "option of another family": (colours(), {"model": "googlenet", "pool2": "avg"}, "pool2"),
    "no GPU": (colours(), {"device": "cuda"}, "no GPU"),
    "filters larger than the images": (colours(size=(4, 4)), {"model": "nin_cifar10", "whiten": True}, "whiten=true"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_invalid_settings_are_refused_and_write_nothing(tmp_path: Path, kind: str):
    data, settings, words = IMPOSSIBLE[kind]
    with pytest.raises(UsageError, match=words) as caught:
        fit(data, TINY, **settings)
    assert "\n" not in str(caught.value)
    if kind != "filters larger than the images":
        assert os.listdir(tmp_path) == []


def test_missing_or_too_few_training_images_are_refused(tmp_path: Path):
    data = colours()
    only_test = make_dataset("colours", data.classes, {"test": data.split("train")})
    with pytest.raises(MissingSplit, match="no train split"):
        fit(only_test, TINY)
    with pytest.raises(DataError, match=r"too few|at least two|single image"):
        fit(colours(1), TINY)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("spec", ["no/such/folder", "nul\0", "x" * 5000])
def test_missing_data_is_an_error(spec: str, tmp_path: Path):
    with pytest.raises(MlpconvError):
        fit(spec, TINY)
    assert os.listdir(tmp_path) == []


def test_a_loop_of_links_is_an_error(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MlpconvError):
        fit(tmp_path / "loop", TINY)
    assert os.listdir(tmp_path) == ["loop"]


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError):
            fit(colours(), TINY, out=out)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_of_images_is_trained_on_and_resumed(tmp_path: Path):
    from PIL import Image

    data = colours(24)
    for i, (image, label) in enumerate(zip(data.split("train").images, data.split("train").labels, strict=True)):
        folder = tmp_path / "cats [1]" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    run = fit(tmp_path / "cats [1]", TINY)
    assert run.folder == Path("runs/cats [1]-001")
    assert run.classifier.classes == data.classes
    assert fit(tmp_path / "cats [1]", resume=True).history == run.history


def test_a_checkpoint_of_another_network_is_refused():
    run = fit(colours(), TINY)
    found, _ = checkpoint.latest(run.folder / "checkpoints")
    tensors = {name: dict(group) for name, group in found[0].items()}
    tensors["model"]["blocks.0.convs.0.weight"] = torch.zeros(1, 2, 3, 4)
    checkpoint.save(run.folder / "checkpoints", 10**6, tensors, found[1])
    with pytest.raises(CheckpointError, match="does not fit this network and recipe"):
        fit(colours(), resume=True)


def test_without_a_report_the_run_folder_has_model_and_metrics_alone(pictures: None):
    names = files(fit(colours(), TINY, epochs=1, report=False).folder)
    assert {"model.safetensors", "metrics.csv"} <= names
    assert not names & {"report.html", "evaluation.json"}


def test_denormals_are_restored_after_a_run(tmp_path: Path) -> None:
    mlpconv.fit("digits", out=tmp_path / "run", epochs=1, width=0.25, precision="fp32")
    assert sys.float_info.min / 2 > 0


def test_a_folder_with_content_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for settings in ({}, {"epochs": 1}, {"source": "squeezenet"}):
        with pytest.raises(RunFolderError, match="is not empty: choose another folder"):
            fit(tmp_path / "no-such-data", out=tmp_path, **settings)
