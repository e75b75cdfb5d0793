"""Export a classifier: write the file under a temporary name, compare its outputs with torch, then give it its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlpconv.deploy.exportable import Exportable, open_exportable
from mlpconv.deploy.ir_file import seal_ir
from mlpconv.deploy.metadata import VARIANTS, Metadata
from mlpconv.deploy.onnx_file import MAX_FILE, seal
from mlpconv.deploy.onnx_graph import OPSET, PixelsToOutputs
from mlpconv.deploy.parity import MAX_DIFFERENCE, Parity, checked_graph, compare_with_torch, sample_pixels
from mlpconv.deploy.predictor import Predictor
from mlpconv.deploy.quantize import Calibration, Quantized, quantized
from mlpconv.deploy.runtime import EngineName, require_engine
from mlpconv.errors import ExportError, UsageError, did_you_mean
from mlpconv.files import write_atomic
from mlpconv.inference import Classifier

__all__ = ["Exported", "export", "export_variants", "suffix_of"]


@dataclass(frozen=True)
class Exported:
    """An exported file, and how it compares with torch."""

    path: Path
    variant: str
    bytes: int
    """Size of the file; of both files for OpenVINO."""
    metadata: Metadata
    parity: Parity | None
    """The comparison of the outputs; None for int8."""
    quantized: Quantized | None
    """The accuracy of int8; None for float32."""
    notes: tuple[str, ...] = ()


def suffix_of(variant: str) -> str:
    """Return the file name extension of a variant: .onnx or .xml; raise UsageError for an unknown variant."""
    if variant not in VARIANTS:
        raise UsageError(f"There is no format {variant!r:.40}; {did_you_mean(str(variant)[:40], VARIANTS)}")
    return ".onnx" if variant.startswith("onnx") else ".xml"


def export(
    model: str | os.PathLike[str] | Classifier | Exportable,
    out: str | os.PathLike[str],
    to: str = "onnx",
    *,
    calibration: Calibration | None = None,
) -> Exported:
    """Export a classifier to `out`: pixels in; probabilities, logits and category maps out.

    `model` is a classifier, a model file, a run folder, the name of shipped weights, or `exportable_from_network` of
    any network. `to` is onnx, openvino, onnx-int8 or openvino-int8 (an .xml file with a .bin file beside it); int8
    needs `calibration`. The file is compared with torch before it gets its name. Raises ExportError for a network that
    cannot be exported, or whose exported outputs differ; UsageError for an unknown format or an `out` of another
    extension.
    """
    source = model if isinstance(model, Exportable) else open_exportable(model)
    return export_variants(source, {to: Path(out)}, calibration)[0]


def export_variants(source: Exportable, files: Mapping[str, Path], calibration: Calibration | None) -> list[Exported]:
    """Export a network to several formats, each with its file; raise as `export` does."""
    for variant, path in files.items():
        if path.suffix.lower() != suffix_of(variant):
            raise UsageError(f"{str(path)!r} is not a name for {variant}: give a file ending in {suffix_of(variant)}.")
        if variant.endswith("int8") and calibration is None:
            raise UsageError(f"{variant} needs images to calibrate on: give a data set, or a folder of images.")
        for engine in {_engine_of(variant)} | ({"onnxruntime"} if variant.endswith("int8") else set()):
            require_engine(engine)
    graph = PixelsToOutputs(source)
    written = checked_graph(graph)
    metadata = Metadata(
        name=source.name, variant="onnx", classes=source.classes, input_size=source.input_size,
        outputs=written.outputs, min_size=source.min_size if written.any_size else min(source.input_size[1:]),
        any_size=written.any_size, decode_options=source.preprocessing.decode_options,
        preprocessing=source.preprocessing.names, checks={"opset": OPSET}, info=dict(source.info),
    )  # fmt: skip
    exported = []
    for variant, path in files.items():
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".export-") as folder:
            described = replace(metadata, variant=variant)
            result = _export(graph, written.content, described, Path(folder), path, calibration)
            exported.append(replace(result, notes=source.notes))
    return exported


def _export(
    graph: PixelsToOutputs,
    content: bytes,
    metadata: Metadata,
    stage: Path,
    path: Path,
    calibration: Calibration | None,
) -> Exported:
    """Write one file in the folder `stage`, check it, then move it to `path`."""
    write = _write_onnx if metadata.variant.startswith("onnx") else _write_ir
    parity = result = None
    if calibration is not None and metadata.variant.endswith("int8"):
        content, result = quantized(graph, content, metadata, calibration, stage)
        checks = result.to_dict()
    else:
        write(content, metadata, stage, path)
        parity = _checked(graph, stage, metadata.variant)
        checks = parity.to_dict()
    metadata = replace(metadata, checks={**metadata.checks, **checks})
    size, publish = write(content, metadata, stage, path)
    publish()
    return Exported(path, metadata.variant, size, metadata, parity, result)


def _checked(graph: PixelsToOutputs, stage: Path, variant: str) -> Parity:
    """Compare the staged file with torch; raise ExportError if the outputs differ."""
    predictor = Predictor(stage / f"model{suffix_of(variant)}", engine=_engine_of(variant), threads=1)
    parity = compare_with_torch(graph, predictor, sample_pixels(graph.input_size))
    if max(parity.logits, parity.maps) > MAX_DIFFERENCE or not parity.same_class:
        raise ExportError(
            f"The exported outputs differ from those of torch by {max(parity.logits, parity.maps):.1e} of the largest "
            f"logit; accepted: {MAX_DIFFERENCE:.0e}. The file is not written."
        )
    return parity


def _engine_of(variant: str) -> EngineName:
    return "onnxruntime" if variant.startswith("onnx") else "openvino"


def _write_onnx(content: bytes, metadata: Metadata, stage: Path, path: Path) -> tuple[int, Callable[[], None]]:
    """Stage an ONNX file; return its size and what gives it its name."""
    sealed = seal(content, metadata)
    if len(sealed) > MAX_FILE:
        raise ExportError(f"The file would have {len(sealed):,} bytes; one ONNX file has at most {MAX_FILE:,}.")
    (stage / "model.onnx").write_bytes(sealed)
    return len(sealed), lambda: write_atomic(path, sealed)


def _write_ir(content: bytes, metadata: Metadata, stage: Path, path: Path) -> tuple[int, Callable[[], None]]:
    """Stage an OpenVINO graph and its weights; return their size and what gives them their names."""
    import openvino

    plain = stage / "plain.xml"
    openvino.save_model(openvino.Core().read_model(content), str(plain), compress_to_fp16=False)
    weights = plain.with_suffix(".bin").read_bytes()
    xml = seal_ir(plain.read_bytes(), weights, metadata)
    (stage / "model.xml").write_bytes(xml)
    (stage / "model.bin").write_bytes(weights)

    def publish() -> None:
        write_atomic(path.with_suffix(".bin"), weights)
        write_atomic(path, xml)

    return len(xml) + len(weights), publish
