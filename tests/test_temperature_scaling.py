"""The temperature against SciPy's minimum, and networks whose logits are divided by it and whose classes stay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

import mlpconv
from mlpconv.cli import main
from mlpconv.data import Dataset, Split, make_dataset
from mlpconv.errors import UsageError
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.temperature_scaling import KEY, TemperatureFit, calibrate, calibrate_file, fit_temperature
from mlpconv.training import Progress, Recipe

SIDE = 11
TINY = Recipe(model="nin_tiny", width=0.25, norm="batch", epochs=3, batch_size=16, precision="fp32")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    yield
    torch.set_flush_denormal(False)


def drawn(count: int, classes: int, temperature: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Logits (N, K), and labels that are distributed as the softmax of the logits over a temperature."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(count, classes))
    gumbel = rng.gumbel(size=(count, classes))
    return logits, (logits / temperature + gumbel).argmax(1)


def loss(logits: NDArray[Any], labels: NDArray[np.int64], temperature: float) -> float:
    """The log loss with Platt's targets."""
    scaled = torch.from_numpy(logits / temperature)
    smoothing = 1 / (len(labels) + 2)
    return float(torch.nn.functional.cross_entropy(scaled, torch.from_numpy(labels), label_smoothing=smoothing))


@pytest.mark.parametrize(("count", "classes", "true"), [(53, 3, 1.7), (211, 7, 0.4), (997, 2, 3.0)])
def test_the_temperature_has_the_least_log_loss(count: int, classes: int, true: float) -> None:
    logits, labels = drawn(count, classes, true)
    found = fit_temperature(logits, labels)
    best = minimize_scalar(lambda value: loss(logits, labels, float(np.exp(value))), bounds=(-3, 3), method="bounded")
    assert found == pytest.approx(np.exp(best.x), rel=1e-3)
    assert fit_temperature(logits + 40, labels) == pytest.approx(found, rel=1e-6)  # a constant changes no softmax


def test_the_temperature_that_the_labels_were_drawn_with_is_found() -> None:
    assert fit_temperature(*drawn(20_011, 5, 2.5)) == pytest.approx(2.5, rel=0.03)


def test_a_perfect_score_on_few_images_is_not_certain() -> None:
    labels = np.arange(31) % 3
    confident = np.eye(3)[labels] * 50.0
    scaled = confident / fit_temperature(confident, labels)
    top = np.exp(scaled).max(1) / np.exp(scaled).sum(1)
    np.testing.assert_allclose(top, 1 - 2 / 3 / 33, rtol=1e-3)
    assert fit_temperature(confident, (labels + 1) % 3) == pytest.approx(20)  # always wrong: as flat as accepted


def split_of(count: int, channels: int, side: int, classes: int) -> Split:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, channels, side, side), np.uint8)
    return Split(pixels, np.arange(count, dtype=np.int64) % classes)


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("nin_tiny", 13, {}),
        ("nin_tiny", 13, {"last_relu": True}),
        ("nin_tiny", 13, {"activation": "maxout", "last_relu": True}),
        ("nin_tiny", 32, {"head": "fc"}),
        ("squeezenet", 37, {}),
        ("efficientnet_lite0", 33, {}),
    ],
)
def test_logits_are_divided_and_classes_stay(name: str, side: int, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    size = {} if name != "nin_tiny" else {"size": (side, side)}
    model = create_model(name, num_classes=5, in_channels=3, **options, **size)
    with torch.no_grad():
        model.last_layer.weight.mul_(9)
    split = split_of(41, 3, side, 5)
    preprocessing = Preprocessing.create(("standardize",), 3, (side, side)).fit(split.images)
    classifier = mlpconv.Classifier(model, preprocessing, list("abcde"), (3, side, side))
    before = classifier.logits(torch.from_numpy(split.images)).clone()
    calibrated, fit = calibrate(classifier, split)
    after = calibrated.logits(torch.from_numpy(split.images))
    assert fit.temperature > 1.2
    torch.testing.assert_close(after, before / fit.temperature, rtol=1e-4, atol=1e-5)
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert torch.equal(classifier.logits(torch.from_numpy(split.images)), before)  # the original is unchanged
    result = mlpconv.evaluate(calibrated, split)
    assert (result.log_loss, result.calibration_error) == pytest.approx(
        (fit.log_loss[1], fit.calibration_error[1]), 1e-3
    )
    assert fit.log_loss[1] < fit.log_loss[0]
    assert type(calibrated.model.last_layer) is type(classifier.model.last_layer)


def noisy() -> Dataset:
    """Two classes that differ a little; a third of the labels are wrong, so that certainty is a mistake."""
    rng = np.random.default_rng(0)
    labels = np.arange(90, dtype=np.int64) % 2
    images = rng.integers(0, 200, (90, 1, SIDE, SIDE), np.uint8)
    images[labels == 1, :, :4] //= 2
    return make_dataset(
        "noisy", ("a", "b"), {"train": Split(images, np.where(rng.random(90) < 0.33, 1 - labels, labels))}
    )


def test_a_run_ends_calibrated_and_stays_so_when_resumed(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    plain = mlpconv.fit(noisy(), TINY, out="plain", report=False, val_fraction=0.4)
    run = mlpconv.fit(noisy(), TINY, out="run", val_fraction=0.4, calibrate=True, progress=Notes())
    fit = TemperatureFit.from_dict(run.classifier.info[KEY])
    assert fit is not None
    assert notes[-1] == str(fit)
    assert fit.images == 36
    assert run.history[-1]["val_loss"] == plain.history[-1]["val_loss"]
    for ours, theirs in zip(
        run.classifier.model.last_layer.parameters(), plain.classifier.model.last_layer.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs / fit.temperature)
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert evaluation["calibration_error"] == pytest.approx(fit.calibration_error[1], abs=1e-3)
    assert f"Calibrated: temperature {fit.temperature:.3f}" in Path("run/report.html").read_text()
    before = Path("run/model.safetensors").read_bytes()
    mlpconv.fit(noisy(), out="run", resume=True, report=False)
    assert Path("run/model.safetensors").read_bytes() == before
    assert calibrate_file(Path("run/model.safetensors"), noisy().split("train")) == fit


def test_a_model_file_is_calibrated_on_held_out_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpconv.fitting.summarise", lambda *_: None)
    assert main(["train", "digits", "--epochs", "1", "--out", "run", "--set", "width=0.1"]) == 0
    for words in (["--split", "test"], ["--split", "train"], ["--split", "all"]):
        assert main(["evaluate", "run", "digits", "--calibrate", "new.safetensors", *words]) == 2
    assert "the test images measure the result: use --split val" in capsys.readouterr().err
    assert main(["evaluate", "run", "digits", "--calibrate", "new.onnx"]) == 2
    assert "expected a model file, such as 'new.safetensors'" in capsys.readouterr().err
    assert not list(Path().glob("new.*"))
    assert main(["evaluate", "run", "digits", "--calibrate", "new.safetensors", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    fit, new, old = said["calibration"], mlpconv.load("new.safetensors"), mlpconv.load("run")
    assert said["split"] == "val"
    assert said["log_loss"] == pytest.approx(fit["log_loss"][1], rel=1e-4)
    assert new.info[KEY] == fit
    assert new.info["fingerprint"] == old.info["fingerprint"]
    weights = [classifier.model.last_layer.weight for classifier in (old, new)]
    assert torch.equal(weights[1], weights[0] / fit["temperature"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 0}, "calibrate=True needs a validation split"),
        ({"activation": "gelu", "last_relu": True}, "has gelu after its last layer"),
        ({"source": "digits", "tune": "head", "add_classes": True}, "would change the logits of the known classes"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_training(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mlpconv.fit(noisy(), **{"recipe": TINY, "calibrate": True, "out": "run", **settings})
    assert not Path("run").exists()


def test_a_damaged_record_is_no_calibration() -> None:
    whole = TemperatureFit(1.5, 7, (0.5, 0.4), (0.1, 0.05))
    assert TemperatureFit.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    for change in ({"temperature": "x"}, {"log_loss": [1]}, {"images": None}, {"log_loss": [float("nan"), 1]}):
        assert TemperatureFit.from_dict(whole.to_dict() | change) is None
    assert TemperatureFit.from_dict([1]) is None
