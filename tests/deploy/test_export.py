"""Exported files give the outputs of torch, say what they are, and are refused when anything in them is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import mlpconv
from mlpconv.cli import main
from mlpconv.deploy import onnx_file, quantize
from mlpconv.deploy.calibration import calibration_from_data
from mlpconv.deploy.exportable import Exportable, exportable_from_network, open_exportable
from mlpconv.deploy.exporting import export
from mlpconv.deploy.metadata import Metadata
from mlpconv.deploy.onnx_graph import PixelsToOutputs
from mlpconv.deploy.parity import MAX_DIFFERENCE, compare_with_torch, sample_pixels
from mlpconv.deploy.predictor import Predictor
from mlpconv.errors import ExportError, UsageError
from mlpconv.preprocessing import Preprocessing


def small_network(*layers: nn.Module, **changes: object) -> Exportable:
    """A network of the given layers for images 3 x 11 x 13, for export."""
    torch.manual_seed(0)
    source = exportable_from_network(
        nn.Sequential(*layers), Preprocessing(["scale"], 3, (11, 13)), list("abcde"), (3, 11, 13)
    )
    return Exportable(**{**vars(source), **changes})


POOLED = (nn.Conv2d(3, 7, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5))


def test_the_onnx_package_reads_and_runs_the_file(digits_onnx: Path, digit_images: np.ndarray) -> None:
    """Against onnxruntime alone, without any code of this package."""
    onnx.checker.check_model(onnx.load(digits_onnx), full_check=True)
    session = onnxruntime.InferenceSession(digits_onnx)
    (probabilities, maps) = session.run(["probabilities", "maps"], {"images": digit_images[:7]})
    classifier = mlpconv.load("digits")
    pixels = torch.from_numpy(digit_images[:7])
    np.testing.assert_allclose(probabilities, classifier.probabilities(pixels).numpy(), atol=1e-5)
    np.testing.assert_allclose(maps, classifier.maps(pixels).numpy(), atol=1e-4)
    assert "mlpconv" in session.get_modelmeta().custom_metadata_map


def test_a_graph_accepts_any_number_and_size_of_images(digits_onnx: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 13, 11), dtype=np.uint8)
    maps, probabilities = Predictor(digits_onnx, engine="onnxruntime").maps(pixels)
    expected = mlpconv.load("digits").maps(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(maps, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_a_network_of_another_library_gets_category_maps(tmp_path: Path) -> None:
    result = export(small_network(*POOLED), tmp_path / "small.onnx")
    assert result.metadata.outputs == ("probabilities", "logits", "maps")
    assert result.parity is not None
    assert result.parity.logits < MAX_DIFFERENCE
    maps, _ = Predictor(result.path, engine="onnxruntime").maps(np.zeros((2, 3, 11, 13), np.uint8))
    assert maps.shape == (2, 5, 5, 6)


def test_a_fully_connected_head_has_no_maps_and_one_size(tmp_path: Path) -> None:
    result = export(small_network(nn.Flatten(), nn.Linear(3 * 11 * 13, 5)), tmp_path / "flat.onnx")
    assert result.metadata.outputs == ("probabilities", "logits")
    assert not result.metadata.any_size
    assert "no category maps" in result.notes[0]
    predictor = Predictor(result.path, engine="onnxruntime")
    with pytest.raises(UsageError, match="11x13"):
        predictor.probabilities(np.zeros((1, 3, 12, 13), np.uint8))
    with pytest.raises(ExportError, match="no category maps"):
        predictor.maps(np.zeros((1, 3, 11, 13), np.uint8))


def test_a_size_that_was_right_by_chance_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The pool is the identity at the traced size and at slightly larger ones, and averages at twice the size."""
    pooled = (nn.Conv2d(3, 4, 3, 4), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5))
    result = export(small_network(*pooled), tmp_path / "pooled.onnx")
    assert not result.metadata.any_size
    assert capfd.readouterr().err == ""


def test_the_smallest_image_of_another_library_s_network_is_found(tmp_path: Path) -> None:
    layers = (nn.Conv2d(3, 7, 3), nn.MaxPool2d(2), nn.Conv2d(7, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = export(small_network(*layers, nn.Linear(7, 5)), tmp_path / "small.onnx")
    assert (result.metadata.min_size, result.metadata.any_size) == (8, True)
    with pytest.raises(UsageError, match="at least 8x8"):
        Predictor(result.path, engine="onnxruntime").probabilities(np.zeros((1, 3, 7, 9), np.uint8))


@pytest.mark.parametrize("names", [["gcn", "zca"], ["mean", "lcn"]])
def test_preprocessing_is_part_of_the_graph(names: list[str], tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, 3, 11, 13), dtype=np.uint8)
    preprocessing = Preprocessing(names, 3, (11, 13)).fit(images)
    source = exportable_from_network(nn.Sequential(*POOLED), preprocessing, list("abcde"), (3, 11, 13))
    result = export(source, tmp_path / "prepared.onnx")
    assert result.parity is not None
    assert result.parity.logits < MAX_DIFFERENCE


class Untraceable(nn.Module):
    """A layer whose output depends on its values in a way that no graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_network_that_cannot_be_traced_names_its_module(tmp_path: Path) -> None:
    source = small_network(nn.Conv2d(3, 5, 3), Untraceable(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ExportError, match=r"cannot be traced, at the module '1'"):
        export(source, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_outputs_differ_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_network(*POOLED)
    monkeypatch.setattr("mlpconv.deploy.exporting.MAX_DIFFERENCE", -1.0)
    with pytest.raises(ExportError, match="differ from those of torch"):
        export(source, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_sees_a_wrong_weight(digits_onnx: Path) -> None:
    source = open_exportable("digits")
    with torch.no_grad():
        source.model.last_layer.bias[3] += 0.01
    predictor = Predictor(digits_onnx, engine="onnxruntime", threads=1)
    parity = compare_with_torch(PixelsToOutputs(source), predictor, sample_pixels(source.input_size))
    assert parity.logits > MAX_DIFFERENCE


def test_int8_is_smaller_and_its_loss_is_measured(tmp_path: Path, digits_onnx: Path) -> None:
    source = open_exportable("digits")
    result = export(source, tmp_path / "d.onnx", "onnx-int8", calibration=calibration_from_data(source))
    assert result.bytes < digits_onnx.stat().st_size / 2
    assert result.quantized is not None
    assert result.quantized.accuracy is not None
    assert result.quantized.accuracy > 0.97
    names = {node.op_type for node in onnx.load(result.path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= names
    assert Predictor(result.path, engine="onnxruntime").metadata.checks["held_out_images"] == 287


def test_int8_that_loses_accuracy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_exportable("digits")
    monkeypatch.setattr(quantize, "MAX_LOSS", -1.0)
    with pytest.raises(ExportError, match="loses too much accuracy"):
        export(source, tmp_path / "d.onnx", "onnx-int8", calibration=calibration_from_data(source))
    assert list(tmp_path.iterdir()) == []


def test_openvino_gives_the_same_outputs(tmp_path: Path, digit_images: np.ndarray) -> None:
    pytest.importorskip("openvino")
    result = export("digits", tmp_path / "digits.xml", "openvino")
    assert result.parity is not None
    assert result.parity.logits < MAX_DIFFERENCE
    predictor = Predictor(result.path)
    assert predictor.predict(digit_images[:20]).labels == mlpconv.load("digits").predict(digit_images[:20]).labels
    weights = result.path.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ExportError, match="damaged"):
        Predictor(result.path)


def test_the_command_line_exports_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    image = tmp_path / "digit.png"
    Image.fromarray(mlpconv.open_data("digits").split("test").images[0, 0]).save(image)
    out = tmp_path / "d.onnx"
    assert main(["export", "digits", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["checks"]["same_class"] is True
    assert main(["predict", str(out), str(image), "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert main(["predict", "digits", str(image), "--json"]) == 0
    assert exported[0]["label"] == json.loads(capsys.readouterr().out)[0]["label"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--out", "x.txt"], "ending in .onnx"),
        (["digits", "--out", "missing/x.onnx"], "does not exist"),
        (["squeezenet", "--to", "onnx-int8", "--out", "x.onnx"], "give --calibrate DATA or --images FILES"),
        (["nothing", "--out", "x.onnx"], "no file or folder"),
        (["nothing", "--to", "all", "--out", "x"], "no file or folder"),
        (["digits", "--to", "all", "--out", __file__], "is a file: with --to all, give a folder"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


BLOCKED = """
import sys
for name in ("torch", "matplotlib", "onnx", "torchvision", "safetensors.torch"):
    sys.modules[name] = None
from mlpconv.cli import main
code = main(sys.argv[1:])
assert sys.modules.get("torch") is None
assert code or not {"mlpconv.data.dataset", "rich.progress"} & set(sys.modules)  # slow, and not needed
sys.exit(code)
"""


def run_without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED, *words], capture_output=True, text=True)


def test_prediction_needs_no_torch(digits_onnx: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "digit.png"
    Image.fromarray(mlpconv.open_data("digits").split("test").images[0, 0]).save(image)
    done = run_without_torch("predict", str(digits_onnx), str(image), "--engine", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["label"] == mlpconv.load("digits").predict(image)[0].label


@pytest.mark.parametrize("words", [["predict", "digits", "x.png"], ["train", "digits"], ["export", "digits"]])
def test_verbs_that_need_torch_say_how_to_install_it(words: list[str]) -> None:
    done = run_without_torch(*words)
    assert done.returncode == 1
    assert (
        done.stderr == "mlpconv: the Python package 'torch' is missing: install it with pip install 'mlpconv[train]'\n"
    )


def metadata_of(path: Path) -> tuple[bytes, Metadata]:
    metadata, content = onnx_file.read_onnx(path)
    end = content.rindex(b"\x0a\x07mlpconv")
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    assert end
    return model.SerializeToString(), metadata


def test_a_flipped_bit_anywhere_is_detected(digits_onnx: Path, tmp_path: Path) -> None:
    content = digits_onnx.read_bytes()
    path = tmp_path / "x.onnx"
    for position in np.random.default_rng(0).integers(0, len(content), 60):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            metadata, _ = onnx_file.read_onnx(path)
        except ExportError:
            continue
        assert position > len(content) - 4000, "a flipped bit in the graph was not detected"
        assert metadata  # a letter in the description of the training changed, which the digest does not cover


@pytest.mark.parametrize("length", [0, 1, 7, 100, 5000, -1, -9])
def test_a_file_that_is_cut_short_is_refused(length: int, digits_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(digits_onnx.read_bytes()[:length])
    with pytest.raises(ExportError):
        Predictor(path)


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def external_in_attribute(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Constant", [], ["c"], value=onnx.helper.make_tensor("c", 1, [1], [1.0]))
    node.attribute[0].t.data_location = onnx.TensorProto.EXTERNAL
    model.graph.node.insert(0, node)


def external_in_subgraph(model: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph([], "inner", [], [], [onnx.helper.make_tensor("t", 1, [1], [1.0])])
    inner.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.node.insert(0, onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


@pytest.mark.parametrize("attack", [external, external_in_attribute, external_in_subgraph, sparse])
def test_weights_in_other_files_are_refused(attack: object, digits_onnx: Path, tmp_path: Path) -> None:
    content, metadata = metadata_of(digits_onnx)
    model = onnx.load_from_string(content)
    attack(model)
    path = tmp_path / "x.onnx"
    path.write_bytes(onnx_file.seal(model.SerializeToString(), metadata))
    with pytest.raises(ExportError, match="external data|sparse data"):
        Predictor(path)


def test_a_graph_that_the_metadata_do_not_describe_is_refused(digits_onnx: Path, tmp_path: Path) -> None:
    content, metadata = metadata_of(digits_onnx)
    model = onnx.load_from_string(content)
    del model.graph.output[2]
    path = tmp_path / "x.onnx"
    path.write_bytes(onnx_file.seal(model.SerializeToString(), metadata))
    with pytest.raises(ExportError, match="do not describe"):
        Predictor(path, engine="onnxruntime")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with path.open("wb") as file:
        file.truncate(onnx_file.MAX_FILE + 1)
    with pytest.raises(ExportError, match="is larger than"):
        Predictor(path)


def test_a_file_of_another_program_says_what_is_missing(digits_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(metadata_of(digits_onnx)[0])
    with pytest.raises(ExportError, match="not an export of mlpconv: it has no metadata 'mlpconv'"):
        Predictor(path)
    path.write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    with pytest.raises(ExportError, match="not an ONNX model"):
        Predictor(path)
    with pytest.raises(ExportError, match="There is no file"):
        Predictor(tmp_path / "missing.onnx")
    with pytest.raises(ExportError, match="not a regular file"):
        Predictor(tmp_path)


def test_the_python_interface_is_that_of_a_classifier(digits_onnx: Path, digit_images: np.ndarray) -> None:
    predictor, classifier = Predictor(digits_onnx, engine="onnxruntime"), mlpconv.load("digits")
    assert "onnxruntime" in predictor.choice
    for flip in (False, True):
        ours, theirs = (x.predict(digit_images[:31], tta_flip=flip) for x in (predictor, classifier))
        assert ours.labels == theirs.labels
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5)
    with pytest.raises(UsageError, match="not an image"):
        predictor.predict(3)
    assert predictor.predict([b"nothing"], on_error="skip").skipped
