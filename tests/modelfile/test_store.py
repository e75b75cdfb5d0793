"""The model file: what is saved is what is loaded, the file explains itself, and wrong parts are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mlpconv import inference, modelfile
from mlpconv.errors import ModelFileError, NonFiniteError, UsageError
from mlpconv.inference import Classifier
from mlpconv.modelfile import template
from mlpconv.models import create_model, list_models, weights
from mlpconv.preprocessing import STEPS, Preprocessing

CLASSES = ("ant", "bee", "cat", "dog", "eel")
SIZE = (3, 11, 13)
INFO = {"recipe": {"lr": 0.1}, "metrics": {"val_accuracy": 0.5}, "fingerprint": "f" * 64, "seed": 7}


def make_parts(size: tuple[int, int, int] = SIZE, steps: tuple[str, ...] = ("standardize",), **options: Any) -> Any:
    """A small network with weights of its own, and a preprocessing fitted to noise."""
    torch.manual_seed(1)
    model = create_model("nin_tiny", width=0.25, num_classes=len(CLASSES), in_channels=size[0], **options)
    for name, tensor in model.state_dict().items():  # nothing may be as it was built, and nothing may be dead
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dim() == 1:
            tensor.add_(torch.rand_like(tensor) / 5)
        elif tensor.dim() == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
    images = torch.randint(0, 256, (17, *size), dtype=torch.uint8)
    return model, Preprocessing.create(steps, size[0], size[1:]).fit(images)


def save(path: Path, **changes: Any) -> Path:
    model, preprocessing = make_parts()
    parts: dict[str, Any] = {"classes": CLASSES, "input_size": SIZE, "info": INFO} | changes
    modelfile.save(path, parts.pop("model", model), parts.pop("preprocessing", preprocessing), **parts)
    return path


def noise(size: tuple[int, int, int] = SIZE, count: int = 5) -> Tensor:
    return torch.randint(0, 256, (count, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("steps", [*((name,) for name in STEPS), ("gcn", "zca"), ("mean", "lcn")], ids=",".join)
@pytest.mark.parametrize("norm", [None, "batch"])
def test_a_file_gives_back_the_same_numbers(tmp_path: Path, steps: tuple[str, ...], norm: str | None) -> None:
    model, preprocessing = make_parts(steps=steps, norm=norm)
    modelfile.save(tmp_path / "m", model, preprocessing, classes=CLASSES, input_size=SIZE, info=INFO)
    expected = model.eval()(preprocessing(noise())).detach()
    assert expected.std(0).min() > 1e-4
    loaded = inference.load(tmp_path / "m")
    torch.testing.assert_close(loaded.logits(noise()), expected, rtol=1e-5, atol=1e-6)
    assert (loaded.classes, loaded.input_size, loaded.model.config) == (CLASSES, SIZE, model.config)
    assert {**loaded.info, "versions": None} == {**INFO, "versions": None}
    assert not any(module.training for module in [*loaded.model.modules(), *loaded.preprocessing.modules()])
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("name", list_models())
def test_every_network_travels_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = create_model(name)
    channels, height, width = model.input_size
    preprocessing = Preprocessing.create(["scale"], channels, (height, width))
    classes = [f"class {k}" for k in range(model.num_classes)]
    modelfile.save(tmp_path / "m", model, preprocessing, classes=classes, input_size=model.input_size, info={})
    loaded = inference.load(tmp_path / "m").model
    assert loaded.config == model.config
    stored, kept = loaded.state_dict(), model.state_dict()
    assert list(stored) == list(kept)
    assert all(torch.equal(stored[key], kept[key]) and stored[key].dtype == kept[key].dtype for key in kept)


def test_half_is_half_as_large_and_loads_as_float32(tmp_path: Path) -> None:
    whole, half = save(tmp_path / "whole"), save(tmp_path / "half", half=True)
    tensors = safetensors.torch.load_file(half)
    weights = {name for name, value in make_parts()[0].state_dict().items() if value.dim() > 1}
    assert {name for name, value in tensors.items() if value.dtype == torch.float16} == {f"model.{n}" for n in weights}
    assert half.stat().st_size < 0.75 * whole.stat().st_size
    loaded, exact = inference.load(half), inference.load(whole)
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
    torch.testing.assert_close(loaded.logits(noise()), exact.logits(noise()), rtol=0.02, atol=0.02)
    assert not torch.equal(loaded.logits(noise()), exact.logits(noise()))


def test_the_file_explains_itself_to_any_reader_of_safetensors(tmp_path: Path) -> None:
    with safetensors.safe_open(save(tmp_path / "m"), "pt") as file:
        assert set(file.metadata()) == {"mlpconv"}
        document = json.loads(file.metadata()["mlpconv"])
        assert {name.split(".")[0] for name in file.keys()} == {"model", "preprocessing"}  # noqa: SIM118
    assert document["format"] == "mlpconv model"
    assert document["version"] == 1
    assert document["classes"] == list(CLASSES)
    assert document["info"]["versions"]["torch"] == torch.__version__
    assert document["preprocessing"]["steps"] == ["standardize"]


def test_the_same_parts_make_the_same_bytes(tmp_path: Path) -> None:
    assert save(tmp_path / "a").read_bytes() == save(tmp_path / "b").read_bytes()


def test_a_network_that_is_not_what_it_says_is_not_saved(tmp_path: Path) -> None:
    model, preprocessing = make_parts()
    model.blocks[0].convs[1] = nn.Sequential(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1))
    with pytest.raises(UsageError, match="differs from its configuration .*'blocks.0.convs.1.0.bias' and 5 others"):
        save(tmp_path / "m", model=model, preprocessing=preprocessing)
    model.blocks[0].convs[1] = nn.Conv2d(8, 8, 3)
    with pytest.raises(UsageError, match="'blocks.0.convs.1.weight' and 0 other"):
        save(tmp_path / "m", model=model, preprocessing=preprocessing)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    model, preprocessing = make_parts()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modelfile.save(tmp_path / "m", model, preprocessing, classes=CLASSES, input_size=SIZE, info={}, half=True)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_channels_last_and_shared_weights_are_saved_whole(tmp_path: Path) -> None:
    model, preprocessing = make_parts()
    pool = torch.cat([p.detach().flatten() for p in model.parameters()])
    place = 0
    for parameter in model.parameters():  # all are views of one tensor, as after flattening for an optimiser
        parameter.data = pool[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
    model.to(memory_format=torch.channels_last)
    norms = model.blocks[0].norms
    norms[0].weight = norms[1].weight  # one tensor under two names
    save(tmp_path / "m", model=model, preprocessing=preprocessing)
    loaded = inference.load(tmp_path / "m").model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_loading_moves_no_random_numbers(tmp_path: Path) -> None:
    model, preprocessing = make_parts(steps=("lcn",))
    path = save(tmp_path / "m", model=model, preprocessing=preprocessing)
    before = torch.random.get_rng_state()
    inference.load(path)
    assert torch.equal(torch.random.get_rng_state(), before)


class WithMemory(nn.Module):
    """A part with random first values, and with a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3).uniform_())
        self.register_buffer("window", torch.full((2,), 0.5), persistent=False)


def test_a_part_with_buffers_of_its_own_is_built_anew_without_moving_random_numbers() -> None:
    with torch.device("meta"):
        part = WithMemory()
    before = torch.random.get_rng_state()
    made = template._fill(part, WithMemory, "x", {"x.weight": torch.tensor([1.0, 2, 3])})
    assert made.weight.tolist() == [1, 2, 3]
    assert made.window.tolist() == [0.5, 0.5]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loading_does_not_import_the_compiler(tmp_path: Path) -> None:
    """Whatever first values a network or a preprocessing would start with."""
    files = [str(tmp_path / "steps")]
    model, preprocessing = make_parts(size=(3, 8, 8), steps=("gcn", "zca", "lcn", "mean"))
    save(tmp_path / "steps", model=model, preprocessing=preprocessing, input_size=(3, 8, 8))
    for name in ("googlenet", "nin_tiny"):
        for init in ("paper", "identity"):
            files.append(str(tmp_path / f"{name} {init}"))
            model = create_model(name, num_classes=5, in_channels=3, init=init, width=0.125)
            size = (3, *model.input_size[1:])
            save(
                Path(files[-1]),
                model=model,
                preprocessing=Preprocessing.create(["scale"], 3, size[1:]),
                input_size=size,
            )
    code = f"import sys, mlpconv; [mlpconv.load(file) for file in {files}]; print('torch._dynamo' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300).stdout
    assert out == "False\n"


def test_a_run_folder_and_a_path_stand_for_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors")
    for given in (path, str(path), tmp_path, str(tmp_path) + "/"):
        assert inference.load(given).classes == CLASSES


def test_shipped_weights_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    with pytest.raises(ModelFileError, match=r"no file or folder 'mine': .* shipped network \(none in this release\)"):
        inference.load("mine")
    save(tmp_path / "mine.safetensors")
    assert inference.load("mine").classes == CLASSES
    with pytest.raises(ModelFileError, match=r"'../mine': .* shipped network \(mine\)"):
        inference.load("../mine")


@pytest.mark.parametrize("given", ["", "no/such", "a" * 5000, "nul\0byte", "nin_svhn"])
def test_what_is_not_there_is_said_to_be_not_there(given: str) -> None:
    with pytest.raises(ModelFileError, match=r"There is no file|has no model.safetensors"):
        inference.load(given)


def test_an_unfinished_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no model.safetensors: give a model file or a finished run"):
        inference.load(tmp_path)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(path, info={"other": 1})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, poison: float) -> None:
    model, preprocessing = make_parts()
    with torch.no_grad():
        model.first_conv.weight[3, 1, 2, 0] = poison
    with pytest.raises(NonFiniteError, match=r"model\..*weight is NaN or infinite in the network"):
        save(tmp_path / "m", model=model, preprocessing=preprocessing)
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_half_are_not_saved(tmp_path: Path) -> None:
    model, preprocessing = make_parts()
    with torch.no_grad():
        model.first_conv.weight[3, 1, 2, 0] = 70_000.0
    with pytest.raises(NonFiniteError, match=r"use half=False"):
        save(tmp_path / "m", model=model, preprocessing=preprocessing, half=True)
    assert save(tmp_path / "m", model=model, preprocessing=preprocessing).exists()


REFUSED = {
    "too few names": ({"classes": CLASSES[:4]}, "4 class names for 5 classes"),
    "a name twice": ({"classes": (*CLASSES[:4], "ant")}, "unique names"),
    "an empty name": ({"classes": (*CLASSES[:4], "")}, "class name is empty"),
    "a name that is a number": ({"classes": (*CLASSES[:4], 5)}, "not a string"),
    "a very long name": ({"classes": (*CLASSES[:4], "e" * 1001)}, "longer than 1000"),
    "two sides": ({"input_size": (3, 11)}, r"\(C, H, W\), each from 1"),
    "a side of 0": ({"input_size": (3, 0, 13)}, "each from 1"),
    "a huge side": ({"input_size": (3, 11, 5000)}, "to 4096"),
    "a fraction": ({"input_size": (3, 11.0, 13)}, "each from 1"),
    "other channels": ({"input_size": (1, 11, 13)}, "1 channels; the network expects 3"),
    "too small": ({"input_size": (3, 2, 13)}, "2x13 are too small; expected at least"),
    "NaN in info": ({"info": {"loss": float("nan")}}, "info cannot be stored as JSON"),
    "objects in info": ({"info": {"model": object()}}, "info cannot be stored as JSON"),
    "a huge info": ({"info": {"history": "x" * (3 << 20)}}, "store less"),
    "deep info": ({"info": {"a": json.loads("[" * 40 + "]" * 40)}}, "levels deep"),
    "not ours": ({"model": nn.Linear(2, 5)}, "A Linear is not a network of mlpconv"),
    "not fitted": ({"preprocessing": Preprocessing.create(["standardize"], 3, (11, 13))}, "not fitted"),
    "fitted to grey": ({"preprocessing": Preprocessing.create(["gcn"], 1, (11, 13))}, r"is for images \(1, 11, 13\)"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        save(tmp_path / "m", **changes)
    assert list(tmp_path.iterdir()) == []


def test_whitening_belongs_to_its_size(tmp_path: Path) -> None:
    model, preprocessing = make_parts(steps=("zca",))
    with pytest.raises(UsageError, match=r"is for images \(3, 11, 13\), the network for \(3, 13, 11\)"):
        save(tmp_path / "m", model=model, preprocessing=preprocessing, input_size=(3, 13, 11))


NAMES = ["naïve café", "猫", "a\x1b[31mred", "line\nbreak", 'quo"te\\', "\udce9 invalid", "[bold]x"]


@pytest.mark.parametrize("name", NAMES)
def test_any_class_name_survives(tmp_path: Path, name: str) -> None:
    loaded = inference.load(save(tmp_path / "m", classes=(name, *CLASSES[1:])))
    assert loaded.classes[0] == name
    shown = repr(loaded) + str(loaded.predict(noise()[:1])[0]) + repr(loaded.predict(noise()))
    assert shown.isprintable()


def test_a_fully_connected_head_keeps_its_size(tmp_path: Path) -> None:
    model, preprocessing = make_parts(size=(3, 11, 11), head="fc", dropout=0.5)
    if tuple(model.input_size[1:]) != (11, 11):
        with pytest.raises(UsageError, match="11x11 do not fit"):
            save(tmp_path / "m", model=model, preprocessing=preprocessing, input_size=(3, 11, 11))
    channels, height, width = model.input_size
    fitted = Preprocessing.create(["scale"], channels, (height, width))
    path = save(tmp_path / "m", model=model, preprocessing=fitted, input_size=model.input_size)
    assert isinstance(inference.load(path), Classifier)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_network_of_any_floating_type_loads_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model, preprocessing = make_parts(norm="batch")
    expected = {name: value.to(dtype) for name, value in model.state_dict().items() if value.is_floating_point()}
    if dtype == torch.float64:
        preprocessing.double()
    loaded = inference.load(save(tmp_path / "m", model=model.to(dtype), preprocessing=preprocessing))
    for name, value in expected.items():
        assert loaded.model.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.model.state_dict()[name], value.float()), name
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert loaded.probabilities(noise()).shape == (5, 5)


def test_weights_too_large_for_float32_are_not_saved(tmp_path: Path) -> None:
    model, preprocessing = make_parts()
    model.double()
    with torch.no_grad():
        model.first_conv.weight[3, 1, 2, 0] = 1e200
    with pytest.raises(NonFiniteError, match=r"is NaN or infinite as torch\.float32"):
        save(tmp_path / "m", model=model, preprocessing=preprocessing)


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a folder: give a file, such as '.*model\.safetensors'"):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []
