"""A linear probe changes the classifier and nothing else, and its file is an ordinary model file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mlpconv
from mlpconv.cli import main
from mlpconv.data.dataset import Split, make_dataset
from mlpconv.errors import UsageError
from mlpconv.models import create_model
from mlpconv.transfer import FeatureCache, linear_probe
from mlpconv.transfer.features import FastForward, extract
from mlpconv.transfer.source import BACKBONES

SIDE, COUNT = 67, 13
NO_CACHE = FeatureCache(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of grey gratings, horizontal and vertical, with noise: 13 images each."""
    top, rng = tmp_path_factory.mktemp("gratings"), np.random.default_rng(0)
    for name in ("horizontal", "vertical"):
        (top / name).mkdir()
        for index in range(COUNT):
            wave = np.sin(np.arange(SIDE) * rng.uniform(0.4, 0.6) + rng.uniform(0, 6))
            image = 128 + 60 * np.broadcast_to(wave, (SIDE, SIDE)) + rng.normal(0, 10, (SIDE, SIDE))
            image = image.T if name == "horizontal" else image
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(top / name / f"{index}.png")
    return top


@pytest.fixture(scope="module", params=BACKBONES)
def probe(request: pytest.FixtureRequest, folder: Path) -> mlpconv.Classifier:
    return linear_probe(folder, request.param, size=SIDE, cache=NO_CACHE)


def test_learns_two_textures_and_reports_the_held_out_images(probe: mlpconv.Classifier, folder: Path) -> None:
    metrics = probe.info["metrics"]
    assert (metrics["epoch"], metrics["train_accuracy"], metrics["val_accuracy"]) == (0, 1.0, 1.0)
    assert probe.predict(folder / "vertical" / "3.png")[0].label == "vertical"
    assert probe.info["train_images"] == 2 * COUNT - 6
    shuffled = mlpconv.open_data(folder, size=SIDE, channels=3).split("train")
    labels = np.random.default_rng(1).permutation(shuffled.labels)
    noise = make_dataset("noise", ("a", "b"), {"train": Split(shuffled.images, labels)})
    assert linear_probe(noise, "squeezenet", val_fraction=0.4, cache=NO_CACHE).info["metrics"]["val_accuracy"] < 1


def test_only_the_classifier_differs_from_the_shipped_weights(probe: mlpconv.Classifier) -> None:
    source = probe.info["recipe"]["source"]
    shipped = create_model(source, pretrained=True).state_dict()
    changed = {key for key, value in probe.model.state_dict().items() if not torch.equal(value, shipped[key])}
    names = {id(parameter): name for name, parameter in probe.model.named_parameters()}
    assert changed == {names[id(parameter)] for parameter in probe.model.last_layer.parameters()}


def test_the_network_gives_the_logits_of_the_fitted_head(probe: mlpconv.Classifier, folder: Path) -> None:
    pixels = mlpconv.open_data(folder, size=SIDE, channels=3, val_fraction=0).split("train").images[:7]
    features = extract(FastForward(probe.model, "fp32"), probe.preprocessing, pixels)
    layer = probe.model.last_layer
    expected = features @ layer.weight.detach().reshape(2, -1).T + layer.bias.detach()
    logits = probe.logits(torch.from_numpy(np.array(pixels)))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert (expected < 0).any(), "a ReLU behind the classifier would show"
    torch.testing.assert_close(
        probe.maps(torch.from_numpy(np.array(pixels))).mean((2, 3)), logits, rtol=1e-3, atol=1e-3
    )


def test_the_saved_file_evaluates_on_the_held_out_images(
    probe: mlpconv.Classifier, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "probe.safetensors"
    mlpconv.save(
        path, probe.model, probe.preprocessing, classes=probe.classes, input_size=probe.input_size, info=probe.info
    )
    assert main(["evaluate", str(path), str(folder), "--split", "val", "--json"]) == 0
    loaded = mlpconv.load(path)
    pixels = torch.from_numpy(np.array(mlpconv.open_data(folder, size=SIDE, channels=3).split("val").images))
    torch.testing.assert_close(loaded.logits(pixels), probe.logits(pixels))


def test_progress_counts_every_view_once(folder: Path) -> None:
    seen: list[tuple[int, ...]] = []
    linear_probe(
        folder, "squeezenet", size=SIDE, cache=NO_CACHE, progress=lambda done, total: seen.append((done, total))
    )
    images = 2 * (2 * COUNT - 6) + 6  # the training images in two views, the validation images in one
    assert seen[-1] == (images, images)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "sqeezenet"}, "did you mean 'squeezenet'"),
        ({"precision": "fp16"}, "precision='fp16' is not accepted"),
        ({"size": 8}, "squeezenet"),
    ],
)
def test_invalid_arguments(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        linear_probe(folder, **{"source": "squeezenet", "cache": NO_CACHE, **options})


def test_a_dataset_must_be_rgb_and_have_two_classes(folder: Path) -> None:
    grey = mlpconv.open_data(folder, size=SIDE, channels=1)
    with pytest.raises(UsageError, match="open it with open_data"):
        linear_probe(grey, "squeezenet", cache=NO_CACHE)
    images = np.zeros((7, 3, SIDE, SIDE), np.uint8)
    single = make_dataset("single", ("a",), {"train": Split(images, np.zeros(7, np.int64))})
    with pytest.raises(UsageError, match="has one class, 'a'"):
        linear_probe(single, "squeezenet", val_fraction=0, cache=NO_CACHE)


def test_a_run_from_a_pretrained_network(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    out = tmp_path / "run"
    command = ["train", str(folder), "--from", "squeezenet", "--out", str(out), "--set", f"size={SIDE}"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "validation accuracy 100.00%" in said
    assert "classifier of squeezenet fitted" in said
    report = (out / "report.html").read_text()
    assert "100.00%" in report
    assert mlpconv.load(out).classes == ("horizontal", "vertical")
    assert {path.name for path in (tmp_path / "cache" / "features").iterdir()}
    assert main(command) == 1
    assert "is not empty" in capsys.readouterr().err
    before = out.joinpath("model.safetensors").read_bytes()
    assert main([*command, "--resume"]) == 0
    again, first = mlpconv.load(out), mlpconv.modelfile.read(out)
    assert before
    assert again.info["penalty"] == first.info["penalty"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "resnet18"], "There is no source 'resnet18'"),
        (["--from", "squeezenet", "--epochs", "3"], "--epochs 3 has no effect with --from squeezenet"),
        (["--from", "auto", "--recipe", "best"], "--recipe best has no effect with --from auto"),
        (["--from", "auto", "--epochs", "3"], "--epochs 3 has no effect with --from auto"),
        (["--recipe", "fast", "--tune", "last"], "--tune last needs pretrained weights: name them, --from NETWORK"),
        (["--from", "squeezenet", "--tune", "some"], "tune='some' is not accepted"),
        (["--from", "squeezenet", "--minutes", "3"], "--minutes 3.0 needs --from auto: pass it too"),
        (["--minutes", "3", "--tune", "all"], "--minutes 3.0 chooses how many layers are trained, and --tune all says"),
        (["--minutes", "-1"], "--minutes -1.0 is not accepted: give 0 to 100,000 minutes"),
        (["--balance", "--recipe", "fast", "--set", "shuffle_window=9"], "--balance draws from all images"),
        (["--from", "squeezenet", "--calibrate", "--add-classes"], "--calibrate would change the logits of the known"),
        (["--from", "squeezenet", "--tune", "all", "--set", "model=nin_tiny"], "--set model=nin_tiny has no effect"),
        (["--from", "squeezenet", "--set", "lr=0.1"], "--set lr=0.1 has no effect"),
        (["--from", "squeezenet", "--set", "size=many"], "size"),
        (["--from", "squeezenet", "--set", "seed=one"], "seed"),
        (["--from", "squeezenet", "--set", "val_fraction=2"], "val_fraction"),
    ],
)
def test_invalid_options_are_one_line_and_leave_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["train", str(folder), "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_second_probe_reads_the_cached_features(folder: Path, tmp_path: Path) -> None:
    cache = FeatureCache(folder=tmp_path / "features")
    computed: list[tuple[int, ...]] = []
    state = torch.get_rng_state()
    first = linear_probe(folder, "squeezenet", size=SIDE, cache=cache, progress=lambda *counts: computed.append(counts))
    assert computed
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)  # the new classifier starts from other weights
    computed.clear()
    again = linear_probe(folder, "squeezenet", size=SIDE, cache=cache, progress=lambda *counts: computed.append(counts))
    assert computed == []
    assert torch.equal(first.model.last_layer.weight, again.model.last_layer.weight)


def test_the_size_of_a_dataset_is_not_ignored(folder: Path, tmp_path: Path) -> None:
    dataset = mlpconv.open_data(folder, size=SIDE, channels=3)
    with pytest.raises(UsageError, match="size=96 differs from the Dataset's 67x67"):
        mlpconv.fit(dataset, source="squeezenet", size=96, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_one_class_leaves_no_run(folder: Path, tmp_path: Path) -> None:
    dataset = mlpconv.open_data(folder, size=SIDE, channels=3)
    single = make_dataset("single", ("a",), {"train": Split(dataset.split("train").images, np.zeros(20, np.int64))})
    with pytest.raises(UsageError, match="has one class, 'a'"):
        mlpconv.fit(single, source="squeezenet", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
