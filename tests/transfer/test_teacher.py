"""Runs with a teacher: what they learn, what is refused, and that they resume to the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mlpconv
from mlpconv.cli import main
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.data.converted import ConvertedImages
from mlpconv.data.pack import pack
from mlpconv.data.shards import memory_limit
from mlpconv.errors import RunFolderError, UsageError
from mlpconv.fitting import fit
from mlpconv.training import Progress, Recipe
from mlpconv.transfer import features
from mlpconv.transfer.source import Source, open_source
from mlpconv.transfer.teacher import described, summary

SIDE = 11
CLOCKS = {"images_per_second", "seconds", "cpu_seconds"}
SMALL = Recipe(model="nin_tiny", width=0.25, norm="batch", epochs=6, batch_size=16, precision="fp32", lr=0.05)
STUDENT: dict[str, Any] = {
    "recipe": SMALL.with_settings(epochs=2, flip="random", crop=1, label_smoothing=0.1), "report": False,
}  # fmt: skip


class Notes(Progress):
    """Keep all notes; end the run at a step, as a kill does."""

    def __init__(self, ends_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.ends_at = ends_at

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, step: int, *_: Any) -> None:
        if step == self.ends_at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    yield
    torch.set_flush_denormal(False)


def stripes(images: int = 53, side: int = SIDE, classes: tuple[str, ...] = ("a", "b", "c")) -> Dataset:
    """Noise with a bright stripe at a left column, whose number is the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % len(classes)
    pixels = rng.integers(0, 90, (images, 3, side, side), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[..., label] += 110
    return make_dataset("stripes", classes, {"train": Split(pixels, labels)})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of classes in another order, on images of another size."""
    out, data = tmp_path_factory.mktemp("teacher") / "run", stripes(side=13)
    order = np.array([2, 0, 1])  # a, b, c are the outputs 2, 0 and 1
    split = Split(data.split("train").images, order[data.split("train").labels])
    fit(make_dataset("stripes", ("b", "c", "a"), {"train": split}), SMALL, out=out, report=False)
    return out


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(mlpconv.load(path).model.state_dict())


def same(first: Path, second: Path) -> bool:
    return all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_the_outputs_of_a_teacher_are_found_by_class_name_and_resized_image(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    loader = mlpconv.training.session.BatchLoader
    monkeypatch.setattr("mlpconv.training.session.BatchLoader", lambda *given: seen.append(given[-1]) or loader(*given))
    progress = Notes()
    run = fit(stripes(), **STUDENT, teacher=teacher, teacher_temperature=1.0, progress=progress)
    (soft,), classifier = seen, mlpconv.load(teacher)
    train = mlpconv.data.validation.with_validation(stripes(), 0.2, 0).split("train")
    images = [Image.fromarray(image.transpose(1, 2, 0)) for image in train.images]
    flipped = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    for view, pictures in zip(soft, (images, flipped), strict=True):
        assert view.shape == (len(train), 3)
        wanted = classifier.predict(pictures).probabilities[:, [2, 0, 1]]
        np.testing.assert_allclose(view, wanted, atol=0.02)  # a flip before and after resizing rounds differently
    facts = run.classifier.info["teacher"]
    correct = soft[0].argmax(1).numpy() == train.labels
    assert facts["train_accuracy"] == pytest.approx(correct.mean()) and correct.mean() > 0.6
    assert (facts["name"], facts["network"], facts["views"]) == (str(teacher), "nin_tiny", 2)
    assert len(facts["sha256"]) == 64
    assert run.classifier.info["recipe"]["teacher_temperature"] == 1.0
    said = f"{facts['val_accuracy']:.2%} on the validation images"
    assert any(str(teacher) in note and said in note for note in progress.notes)


def test_the_teacher_decides_what_is_learned_and_weight_0_is_no_teacher(teacher: Path) -> None:
    fit(stripes(), **STUDENT, out="plain")
    fit(stripes(), **STUDENT, teacher=teacher, teacher_weight=0, out="zero")
    fit(stripes(), **STUDENT, teacher=teacher, out="taught")
    assert same(Path("plain"), Path("zero"))
    assert not same(Path("plain"), Path("taught"))
    shuffled = stripes()
    labels = np.random.default_rng(1).permutation(shuffled.split("train").labels)
    wrong = make_dataset("stripes", shuffled.classes, {"train": Split(shuffled.split("train").images, labels)})
    settings = STUDENT | {"recipe": STUDENT["recipe"].with_settings(val_fraction=0, epochs=1)}
    taught = [
        fit(data, **settings, teacher=teacher, teacher_weight=1.0, out=name).folder
        for data, name in ((shuffled, "right"), (wrong, "wrong"))
    ]
    assert same(*taught)  # labels have no effect at weight 1


def test_outputs_are_computed_once(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[bool] = []
    outputs = features.outputs
    monkeypatch.setattr(
        features, "outputs", lambda *given, flip, **rest: computed.append(flip) or outputs(*given, flip=flip, **rest)
    )
    before = weights(teacher)
    for number in range(2):
        fit(stripes(), **STUDENT, teacher=teacher, teacher_temperature=1.0 + number, out=f"run-{number}")
    assert computed == [False, True, False]  # two views of the training images, one of the validation images
    assert all(torch.equal(value, weights(teacher)[name]) for name, value in before.items())


def test_a_run_resumes_to_the_same_bits(teacher: Path) -> None:
    more = STUDENT | {"teacher": teacher, "mixup": 0.3, "checkpoint_minutes": 0, "flip": "alternate", "workers": 2}
    whole = fit(stripes(), **more, out="whole")
    with pytest.raises(KeyboardInterrupt):
        fit(stripes(), **more, out="part", progress=Notes(ends_at=2))
    resumed = fit(stripes(), out="part", resume=True, report=False)
    assert same(whole.folder, resumed.folder)
    assert [set(row.items()) - {(key, row[key]) for key in CLOCKS} for row in resumed.history] == [
        set(row.items()) - {(key, row[key]) for key in CLOCKS} for row in whole.history
    ]
    assert resumed.classifier.info["teacher"] == whole.classifier.info["teacher"]


def test_a_resumed_run_keeps_its_teacher(teacher: Path) -> None:
    fit(stripes(side=13), SMALL, out="other", report=False, epochs=1)
    fit(stripes(), **STUDENT, teacher="other", out="run")
    Path("other/model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes())
    with pytest.raises(RunFolderError, match="other has other weights than the teacher that this run started with"):
        fit(stripes(), out="run", resume=True)


def write(folder: Path, images: int = 9, side: int = 17) -> Path:
    """Write a folder of two classes, in which one image has a copy."""
    rng = np.random.default_rng(0)
    for name, low in {"dark": 0, "light": 90}.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(low, low + 160, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "dark" / "copy.png").write_bytes((folder / "dark" / "0.png").read_bytes())
    return folder


def test_the_files_of_a_folder_are_read_in_the_size_of_the_teacher(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos")
    fit(folder, SMALL, out="big", report=False, size=17, val_fraction=0.3)
    progress = Notes()
    run = fit(folder, SMALL, out="run", size=7, val_fraction=0.3, epochs=1, teacher="big", progress=progress)
    known = mlpconv.load("big").info["metrics"]
    facts = run.classifier.info["teacher"]
    assert facts["val_accuracy"] == known["val_accuracy"]  # the same images, in 17 pixels, are held out
    assert facts["input_size"] == [3, 17, 17]
    assert not any("may have been trained on validation images" in note for note in progress.notes)
    page = (run.folder / "report.html").read_text()
    assert "from the probabilities (weight 0.9, temperature 8) of big (nin_tiny)." in page
    assert "Teacher" in page and f"{facts['val_accuracy']:.2%}" in page
    fit(folder, SMALL, out="again", size=7, val_fraction=0.2, epochs=1, teacher="big", progress=progress, report=False)
    assert any("may have been trained on validation images" in note for note in progress.notes)


def test_tar_shards_in_memory_and_streamed_give_the_same_bits(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos")
    fit(folder, SMALL, out="big", report=False, size=17, epochs=1)
    pack(folder, tmp_path / "shards", per_shard=7)
    for name, limit in (("memory", None), ("streamed", 1)):
        with memory_limit(limit):
            run = fit(tmp_path / "shards", SMALL, out=name, size=7, epochs=1, teacher="big", report=False)
        assert run.classifier.info["teacher"]["input_size"] == [3, 17, 17]
    assert same(Path("memory"), Path("streamed"))


def test_a_teacher_that_saw_imagenet_says_so_however_long_ago(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos")
    first = fit(folder, source="squeezenet", size=32, out="first", report=False)
    second = fit(folder, source="first", tune="all", epochs=1, out="second", report=False)
    assert [run.classifier.info["pretrained_on"] for run in (first, second)] == ["ImageNet", "ImageNet"]
    facts = described(open_source("second"))
    assert (facts["source"], facts["pretrained_on"]) == ("first", "ImageNet")
    told = summary({"name": "t", "train_accuracy": 1.0, "val_accuracy": None} | facts)
    assert "parameters, trained from first, which saw ImageNet): accuracy 100.00% on the training images" in told
    student = mlpconv.load("second")
    student.info = {"recipe": {"source": "scratch"}, "teacher": facts}
    assert described(Source("t", student))["pretrained_on"] == "ImageNet"  # and so has what it taught


def test_a_shipped_teacher_says_whether_it_saw_imagenet() -> None:
    facts = described(open_source("efficientnet_lite0"))
    assert (facts["source"], facts["pretrained_on"]) == (None, "ImageNet")
    assert described(open_source("digits"))["pretrained_on"] is None


def test_a_pretrained_network_learns_from_a_teacher_too(teacher: Path) -> None:
    fit(stripes(), SMALL, out="start", report=False, epochs=1)
    run = fit(stripes(), source="start", tune="all", epochs=1, teacher=teacher, report=False, precision="fp32")
    assert [row["epoch"] for row in run.history] == [0, 1]
    assert run.classifier.info["teacher"]["name"] == str(teacher)
    assert {"penalty", "views"} & set(run.classifier.info) == set()  # its classifier was kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "squeezenet"}, r"3 of the 3 classes of stripes \(a, b, c\); it knows tench, .*: it knows the cl"),
        ({"teacher": "squeezenet"}, "First train it on yours, with source='squeezenet', out='runs/teacher', then pass"),
        ({"teacher": "digits"}, "does not know 3 of the 3 classes.*: give a teacher that was trained on these classes"),
        ({"teacher": "digit"}, "There is no teacher 'digit'; did you mean 'digits'"),
        ({"teacher": "timm:resnet18"}, "first train it on them, with source='timm:resnet18'"),
        ({"teacher": ""}, "teacher='' is not accepted"),
        ({"teacher_temperature": 2.0}, "teacher_temperature=2.0 needs a teacher: name one, teacher=MODEL"),
        ({"teacher_weight": 1.5, "teacher": "x"}, "teacher_weight=1.5 is out of range"),
        ({"teacher": "x", "source": "squeezenet", "tune": "head"}, "tune='head' fits a classifier without any"),
        ({"teacher": "x", "source": "squeezenet", "tune": "head", "add_classes": True}, "tune='head' fits a classif"),
    ],
)  # fmt: skip
def test_what_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        fit(stripes(), recipe="fast", report=False, **settings)
    assert not (tmp_path / "runs").exists()


def test_channels_that_are_no_colours_are_not_resized(teacher: Path, tmp_path: Path) -> None:
    pixels, labels = np.zeros((9, 7, SIDE, SIDE), np.uint8), np.arange(9) % 3
    data = make_dataset("bands", ("a", "b", "c"), {"train": Split(pixels, labels)})
    with pytest.raises(
        UsageError, match="reads images of 3x13x13, and bands has 7x11x11; images of 7 channels are not"
    ):
        fit(data, **STUDENT, teacher=teacher)
    assert not (tmp_path / "runs").exists()


def test_a_source_whose_classifier_is_fitted_has_no_teacher() -> None:
    with pytest.raises(UsageError, match="teacher='x' has no effect with source='squeezenet', which fits a classifier"):
        fit("digits", source="squeezenet", teacher="x")


def test_the_command_line_names_the_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--epochs", "1", "--set", "width=0.25", "batch_size=512", "seed=1"]
    assert main(["train", "digits", "--teacher", "digits", *words, "--out", "run", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notes = [line["note"] for line in lines if "note" in line]
    assert any(note.startswith("teacher digits (nin_tiny, ") for note in notes)
    assert any("may have been trained on validation images" in note and "--set seed=1" in note for note in notes)
    assert lines[-1]["teacher"]["name"] == "digits"
    assert lines[-1]["teacher"]["val_accuracy"] > 0.97


def test_converted_images_are_those_of_a_data_set_opened_in_that_size() -> None:
    plain, large = mlpconv.open_data("digits"), mlpconv.open_data("digits", size=17, channels=3)
    converted = ConvertedImages(plain.split("test").images, (3, 17, 17))
    assert converted.shape == large.split("test").images.shape
    assert np.array_equal(converted[5:41], large.split("test").images[5:41])
    assert np.array_equal(converted[np.array([7, 3])], large.split("test").images[[7, 3]])
