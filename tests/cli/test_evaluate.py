"""`mlpconv evaluate`: the right images, the right order of classes, the right words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlpconv import inference, modelfile
from mlpconv.cli import main
from mlpconv.data import open_data
from mlpconv.data.as_trained import open_as_trained
from mlpconv.data.validation import with_validation
from mlpconv.evaluation import evaluate
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing

DIGITS = tuple("0123456789")


def save_model(path: Path, classes: tuple[str, ...], size: tuple[int, int, int], **info: Any) -> inference.Classifier:
    """A small network that answers from the brightness of an image."""
    torch.manual_seed(5)
    model = create_model("nin_tiny", width=0.25, num_classes=len(classes), in_channels=size[0])
    for tensor in model.state_dict().values():
        if tensor.dim() == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
    preprocessing = Preprocessing.create(["scale"], size[0], size[1:])
    modelfile.save(path, model, preprocessing, classes=classes, input_size=size, info=info)
    return inference.load(path)


def make_folder(folder: Path, classes: tuple[str, ...], count: int = 11, size: tuple[int, int] = (13, 13)) -> Path:
    dice = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = dice.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("split", [None, "test", "val", "train"])
def test_named_data_is_split_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str | None
) -> None:
    recipe = {"val_fraction": 0.13, "seed": 3}
    classifier = save_model(
        tmp_path / "m", DIGITS, (1, 8, 8), recipe=recipe, fingerprint=open_data("digits").fingerprint
    )
    found = run_json(capsys, tmp_path / "m", "digits", *(["--split", split] if split else []))
    dataset = with_validation(open_data("digits"), 0.13, 3)
    expected = evaluate(classifier, dataset.split(split or "test"))
    assert found["split"] == (split or "test")
    assert {key: found[key] for key in expected.to_dict()} == json.loads(json.dumps(expected.to_dict()))
    assert found["confusion"] == expected.confusion.tolist()
    assert any("trained on these images" in note for note in found["notes"]) == (split == "train")


def test_split_all_evaluates_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", DIGITS, (1, 8, 8))
    assert run_json(capsys, tmp_path / "m", "digits", "--split", "all")["n"] == 1797


def test_a_folder_is_split_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "pets", ("ant", "bee", "cat"))
    data = open_data(folder, size=13, seed=7, val_fraction=0.3)
    classifier = save_model(
        tmp_path / "m",
        ("ant", "bee", "cat"),
        (3, 13, 13),
        recipe={"val_fraction": 0.3, "seed": 7},
        fingerprint=data.fingerprint,
        validation=data.membership.to_dict() if data.membership else None,
    )
    found = run_json(capsys, tmp_path / "m", folder)
    assert (found["split"], found["n"]) == ("val", 9)
    assert found["log_loss"] == pytest.approx(evaluate(classifier, data.split("val")).log_loss)
    assert not any("These images differ" in note for note in found["notes"])
    (folder / "ant" / "0.png").unlink()
    assert any("These images differ" in note for note in run_json(capsys, tmp_path / "m", folder)["notes"])


def test_no_training_image_is_evaluated_as_validation(tmp_path: Path) -> None:
    """Add, remove and rename images, exchange labels: what was held out stays so, and what was trained on too."""
    folder = make_folder(tmp_path / "pets", ("ant", "bee", "cat"), count=17)
    data = open_data(folder, size=13, seed=7, val_fraction=0.3)
    info = {"validation": data.membership.to_dict() if data.membership else None}
    classifier = save_model(tmp_path / "m", ("ant", "bee", "cat"), (3, 13, 13), **info)
    trained = {image.tobytes() for image in data.split("train").images}
    held = {image.tobytes() for image in data.split("val").images}
    make_folder(tmp_path / "many more pets", ("ant", "bee", "cat"), count=23)
    for i, path in enumerate(sorted((tmp_path / "many more pets").rglob("*.png"))):
        path.rename(folder / path.parent.name / f"{i:02}-new.png")
    (folder / "ant" / "3.png").unlink()
    (folder / "bee" / "4.png").rename(folder / "bee" / "~last.png")
    (folder / "cat" / "5.png").rename(folder / "ant" / "relabelled.png")
    now = open_as_trained(str(folder), None, classifier)
    scored = {image.tobytes() for image in now.split("val").images}
    assert not scored & trained
    assert len(held - scored) <= 1  # the one that is gone, if it was held out
    assert len(now.split("val")) + len(now.split("train")) == 3 * 17 + 3 * 23 - 1


def test_a_folder_of_held_out_images_has_no_training_split(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pets", ("ant", "bee"), count=17)
    data = open_data(folder, size=13, seed=7)
    for name in data.split("train").names or ():
        (folder / name).unlink()
    info = {"validation": data.membership.to_dict() if data.membership else None}
    now = open_as_trained(str(folder), None, save_model(tmp_path / "m", ("ant", "bee"), (3, 13, 13), **info))
    assert {name: len(split) for name, split in now.splits.items()} == {"val": 6}


def test_a_model_that_records_no_held_out_images_has_no_validation_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m", ("ant", "bee"), (3, 13, 13), recipe={"val_fraction": 0.2, "seed": 0})
    folder = make_folder(tmp_path / "pets", ("ant", "bee"))
    found = run_json(capsys, tmp_path / "m", folder)
    assert (found["split"], found["n"]) == ("all", 22)
    assert any("does not record whether these images were trained on" in note for note in found["notes"])
    assert main(["evaluate", str(tmp_path / "m"), str(folder), "--split", "val"]) == 1
    assert "does not record which of its images training held out" in capsys.readouterr().err


def test_classes_are_matched_by_name_and_may_be_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model has its classes in another order, and two that the folder lacks."""
    classifier = save_model(tmp_path / "m", ("eel", "cat", "dog", "bee", "ant"), (3, 13, 13))
    folder = make_folder(tmp_path / "pets", ("ant", "bee", "cat"))
    found = run_json(capsys, tmp_path / "m", folder, "--split", "all")
    assert [row["support"] for row in found["per_class"]] == [0, 11, 0, 11, 11]
    right = sum(classifier.predict(path)[0].label == path.parent.name for path in folder.rglob("*.png"))
    assert found["accuracy"] == pytest.approx(right / 33)


@pytest.mark.parametrize("split", ["all", "test"])
def test_data_of_a_single_class_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str) -> None:
    classifier = save_model(tmp_path / "m", ("eel", "cat", "dog"), (3, 13, 13))
    make_folder(tmp_path / "pets" / "test" if split == "test" else tmp_path / "pets", ("cat",))
    found = run_json(capsys, tmp_path / "m", tmp_path / "pets", "--split", split)
    assert [row["support"] for row in found["per_class"]] == [0, 11, 0]
    right = sum(classifier.predict(path)[0].label == "cat" for path in (tmp_path / "pets").rglob("*.png"))
    assert found["accuracy"] == pytest.approx(right / 11)


def test_an_unknown_class_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", ("ant", "bee"), (3, 13, 13))
    folder = make_folder(tmp_path / "pets", ("ant", "bee", "yak"))
    assert main(["evaluate", str(tmp_path / "m"), str(folder), "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "yak" in err
    assert len(err.splitlines()) == 1


def test_images_are_converted_to_the_size_and_channels_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m", ("ant", "bee"), (1, 7, 7))
    folder = make_folder(tmp_path / "pets", ("ant", "bee"), size=(17, 23))
    assert run_json(capsys, tmp_path / "m", folder, "--split", "train")["n"] == 22


def test_a_missing_split_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", ("ant", "bee"), (3, 13, 13))
    folder = make_folder(tmp_path / "pets", ("ant", "bee"))
    assert main(["evaluate", str(tmp_path / "m"), str(folder), "--split", "test"]) == 1
    assert "no test split" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("missing", "digits"),
        ("m", "no_such_data"),
        ("m",),
        (),
        ("m", "digits", "--split", "x"),
        ("m", "digits", "--batch-size", "0"),
    ],
)
def test_wrong_usage_prints_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m", DIGITS, (1, 8, 8))
    assert main(["evaluate", *words]) in (1, 2)
    out, err = capsys.readouterr()
    assert (out + err).strip()
    assert "Traceback" not in out + err


@pytest.mark.parametrize("recipe", [None, [], {"val_fraction": "x"}, {"val_fraction": 2}, {"seed": "x"}])
def test_unexpected_info_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Any) -> None:
    save_model(tmp_path / "m", DIGITS, (1, 8, 8), recipe=recipe)
    assert run_json(capsys, tmp_path / "m", "digits", "--split", "val")["n"] > 100


def test_the_metrics_are_printed_as_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = save_model(tmp_path / "m", DIGITS, (1, 8, 8))
    assert main(["evaluate", str(tmp_path / "m"), "digits", "--batch-size", "50"]) == 0
    out = capsys.readouterr().out
    found = evaluate(classifier, open_data("digits").split("test"))
    low, high = found.error_interval
    for words in (
        f"{found.error:.2%}  (95 % interval {low:.2%} to {high:.2%})",
        f"{found.log_loss:.4f}",
        f"{found.top5_error:.2%}",
        f"{found.calibration_error:.4f}",
        "Most confused classes",
        f"{found.confused()[0].true} predicted as {found.confused()[0].predicted}: {found.confused()[0].count}",
    ):
        assert words in out
    rows = [line for line in out.splitlines() if line.startswith("│ 7 ")]
    assert f"{found.per_class.recall[7]:.3f}" in rows[0]


def test_of_many_classes_the_worst_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("[red]a", *(f"class {k:02}" for k in range(1, 25)))
    save_model(tmp_path / "m", names, (3, 13, 13))
    folder = make_folder(tmp_path / "pets", names[1:], count=2)
    (folder / names[0]).mkdir()
    Image.new("RGB", (13, 13)).save(folder / names[0] / "0.png")
    assert main(["evaluate", str(tmp_path / "m"), str(folder), "--split", "all"]) == 0
    out = capsys.readouterr().out
    assert "The 20 of 25 classes with the lowest F1" in out
    assert "[red]a" in out


def test_class_names_cannot_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", ("ant", "bee", "c\x1b[31m\nd"), (3, 13, 13))
    folder = make_folder(tmp_path / "pets", ("ant", "bee"))
    assert main(["evaluate", str(tmp_path / "m"), str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    (row,) = [line for line in out.splitlines() if "c\\x1b[31m\\nd" in line]
    assert row.count(" - ") == 3


def test_in_a_pipe_long_names_are_not_wrapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a" * 100
    save_model(tmp_path / "m", (long, "bee"), (3, 13, 13))
    folder = make_folder(tmp_path / ("p" * 90), (long, "bee"))
    assert main(["evaluate", str(tmp_path / "m"), str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'm'} on {folder}, all images"
    assert any(line.startswith(f"│ {long} │") for line in lines)
    assert any(line.startswith("Note: The model file does not record whether") and line.endswith(".") for line in lines)


def test_tta_flip_averages_flipped_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", DIGITS, (1, 8, 8))
    plain, flipped = (run_json(capsys, tmp_path / "m", "digits", *more) for more in ((), ("--tta-flip",)))
    assert plain["log_loss"] != flipped["log_loss"]
    assert flipped["tta_flip"] is True


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--split", "--data", "--json", "--batch-size", "--tta-flip", "Evaluate a model", "Images per batch"):
        assert word in out
    assert "--no-json" not in out
