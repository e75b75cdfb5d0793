"""`mlpconv profile`: architectures, files and other libraries; output as a table, JSON or HTML."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import mlpconv
from mlpconv.analysis import profile
from mlpconv.analysis.table import COLUMNS
from mlpconv.cli import main
from mlpconv.cli.profile import SPARE
from mlpconv.errors import UsageError
from mlpconv.inference.open_network import open_network
from mlpconv.models.external import import_vision


def test_an_architecture_prints_a_table_with_totals_and_the_convention(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "nin_cifar10"]) == 0
    out = capsys.readouterr().out
    for text in ("966,986", "222,486,528", "blocks.2.convs.2", "1 MAC = 1 multiply-add", "padded", "27"):
        assert text in out
    assert "…" not in out


def test_json_is_one_object_with_the_requested_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "nin_cifar10", "--input", "3x64x48", "--batch", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["input_shape"], data["batch"]) == ([3, 64, 48], 2)
    assert data["totals"]["macs"] == 2 * 3 * 222_486_528


def test_a_model_file_and_its_folder_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mlpconv.create_model("nin_tiny", num_classes=2, in_channels=3, size=13)
    preprocessing = mlpconv.Preprocessing.create(["scale"], 3, (13, 13))
    file = tmp_path / "model.safetensors"
    mlpconv.save(file, model, preprocessing, classes=("a", "b"), input_size=(3, 13, 13), info={})
    for given in (file, tmp_path):
        assert main(["profile", str(given), "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["input_shape"] == [3, 13, 13]
        assert data["totals"]["params"] == sum(p.numel() for p in model.parameters())


def test_the_html_page_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "profile.html"
    assert main(["profile", "nin_tiny", "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text().rstrip().endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["profile.html"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nin_cifar"], 2, "nin_cifar10"),
        (["no/such/file"], 2, "torchvision:NAME"),
        (["nin_cifar10", "--input", "32x32"], 2, "3x32x32"),
        (["nin_cifar10", "--input", "0x32x32"], 2, "3x32x32"),
        (["nin_cifar10", "--input", "3x2x2"], 2, "at least"),
        (["nin_cifar10", "--batch", "0"], 2, "batch"),
        (["nin_cifar10", "--html", "absent/page.html"], 2, "--html"),
    ],
)
def test_invalid_arguments_print_one_line(
    words: list[str],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *words]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_damaged_file_is_not_mistaken_for_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x80\x04K\x01.")
    assert main(["profile", str(file)]) == 1
    assert str(file) in capsys.readouterr().err


def test_a_narrow_terminal_shows_the_columns_that_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["profile", "nin_cifar10"]) == 0
    out = capsys.readouterr().out
    assert all(column in out for column in set(COLUMNS) - set(SPARE))
    assert "Columns that do not fit: output, activation, MAC/byte, start, padded." in out
    assert "…" not in out
    assert "blocks.2.activations.2" in out


def test_a_pipe_gets_every_column_however_long_the_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "layer" * 60
    model = nn.Sequential()
    model.add_module(name, nn.Conv2d(3, 5, 3))
    monkeypatch.setattr("mlpconv.inference.open_network.open_network", lambda *_, **__: (model, (3, 7, 11)))
    assert main(["profile", "any"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(column in lines[2] for column in COLUMNS)
    assert any(name in line and "5×5×9" in line for line in lines)
    assert "do not fit" not in "".join(lines)


# ---- other libraries


def of_libraries() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Unload both libraries, and afterwards whatever the test imported under their names."""
    real = {name: sys.modules.pop(name) for name in of_libraries()}
    yield
    for name in of_libraries():
        del sys.modules[name]
    sys.modules.update(real)


@pytest.fixture
def without(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_is_named_with_the_install_command(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", f"{library}:resnet50"]) == 2
    assert "pip install 'mlpconv[vision]'" in capsys.readouterr().err


@pytest.fixture
def stand_ins(forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake packages with the interface of both libraries; torchvision fails as it does with a mismatched PyTorch."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        textwrap.dedent("""
        import torch
        try:
            torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "Meta")
        except RuntimeError:
            raise RuntimeError("operator torchvision::nms does not exist")
    """)
    )
    (tmp_path / "torchvision" / "models.py").write_text(
        textwrap.dedent("""
        from torch import nn
        from types import SimpleNamespace
        def list_models(module): return ["resnet50", "alexnet"]
        def get_model(name, weights): return nn.Conv2d(3, 7, 5)
        def get_model_weights(name):
            return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: SimpleNamespace(crop_size=[224])))
    """)
    )
    (tmp_path / "timm.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def list_models(): return ["tiny", "tinyViT"]
        def list_pretrained(): return ["tiny.a1_in1k", "tiny.wide", "tinyViT.a1_in1k"]
        def create_model(name, pretrained):
            model = nn.Conv2d(1, 7, 5)
            model.default_cfg = {"input_size": (1, 17, 23 if name == "tiny.wide" else 19)}
            return model
    """)
    )


@pytest.mark.usefixtures("stand_ins")
def test_models_of_other_libraries_are_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "torchvision:resnet50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input_shape"] == [3, 224, 224]
    assert main(["profile", "timm:tiny", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["input_shape"], data["totals"]["macs"]) == ([1, 17, 19], 7 * 25 * 13 * 15)
    assert data["model"] == "timm:tiny"
    assert main(["profile", "torchvision:resnet5"]) == 2
    assert "no image classifier 'resnet5'; did you mean 'resnet50'?" in capsys.readouterr().err


@pytest.mark.usefixtures("stand_ins")
def test_names_accept_tags_and_any_case() -> None:
    sizes = {name: open_network(name)[1] for name in ("torchvision:ResNet50", "timm:Tiny", "timm:tinyvit.A1_in1k")}
    assert list(sizes.values()) == [(3, 224, 224), (1, 17, 19), (1, 17, 19)]
    assert [open_network(f"timm:tiny{tag}")[1][2] for tag in ("", ".a1_in1k", ".wide")] == [19, 19, 23]
    for given, accepted in (("tiny.a2_in1k", "tiny.a1_in1k, tiny.wide"), ("tin.wide", "tiny, tinyViT")):
        with pytest.raises(UsageError, match=rf"timm has no .*Accepted: {accepted}\."):
            open_network(f"timm:{given}")


@pytest.mark.usefixtures("stand_ins")
def test_networks_without_weights_are_on_the_meta_device() -> None:
    for given in ("torchvision:alexnet", "timm:tiny", "nin_mnist"):
        network, size = open_network(given, weights=False)
        assert all(parameter.is_meta for parameter in network.parameters())
        real, same = open_network(given)
        assert not any(parameter.is_meta for parameter in real.parameters())
        assert same == size
        assert profile(network, size).to_dict() == profile(real, size).to_dict()
    assert not nn.Linear(2, 3).weight.is_meta


@pytest.mark.usefixtures("stand_ins")
def test_buffers_keep_their_values_and_frozen_weights_stay_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tabled(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(1, 2, 3)
            self.register_buffer("table", torch.arange(5))
            self.scale = nn.Parameter(torch.ones(7), requires_grad=False)
            self.twin = self.weight
            self.register_parameter("none", None)

    monkeypatch.setattr(import_vision("timm"), "create_model", lambda _, pretrained: Tabled())
    network, _ = open_network("timm:tiny", weights=False)
    assert network.get_buffer("table").tolist() == [0, 1, 2, 3, 4]
    assert [network.scale.requires_grad, network.weight.requires_grad] == [False, True]
    assert network.twin is network.weight


@pytest.mark.usefixtures("stand_ins")
def test_a_network_that_reads_its_weights_in_its_constructor_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reading(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(1, 2, 3)
            self.largest = self.weight.abs().max().item()

    monkeypatch.setattr(import_vision("timm"), "create_model", lambda _, pretrained: Reading())
    network, _ = open_network("timm:tiny", weights=False)
    assert network.largest > 0
    assert not network.weight.is_meta


def test_a_trained_network_keeps_its_weights() -> None:
    network, _ = open_network("digits", weights=False)
    assert not any(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("given", "size", "params"),
    [("torchvision:squeezenet1_1", "3×224×224", "1,235,496"), ("timm:resnet10t", "3×176×176", "5,435,488")],
)
def test_installed_libraries(given: str, size: str, params: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Skip libraries that are not installed."""
    try:
        import_vision(given.partition(":")[0])
    except UsageError as error:
        pytest.skip(str(error))
    assert main(["profile", given]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{given}, images of {size}, batch 1\n")
    assert params in next(line for line in out.splitlines() if line.startswith(" total"))
    assert main(["profile", f"{given}x"]) == 2
    said = capsys.readouterr().err
    assert f"closest: {given.partition(':')[2]}" in said
    assert "names are accepted" in said
