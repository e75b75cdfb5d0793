"""`mlpconv export`: write a model as ONNX or OpenVINO, compare it with torch, and compare the variants."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mlpconv.cli.options import DataDir, Model, Switch, check_data_dir

if TYPE_CHECKING:
    from mlpconv.deploy.exportable import Exportable
    from mlpconv.deploy.exporting import Exported
    from mlpconv.deploy.quantize import Calibration
    from mlpconv.deploy.variants import Variant

__all__ = ["export"]

Format = Literal["onnx", "openvino", "onnx-int8", "openvino-int8", "all"]


def export(
    model: Model,
    /,
    *,
    to: Format = "onnx",
    out: Path | None = None,
    calibrate: str | None = None,
    images: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    data_dir: DataDir = None,
    json: Switch = False,
) -> None:
    """Write a model as one file that runs without torch: pixels in; probabilities, logits and category maps out.

    The file is compared with torch before it gets its name. int8 is calibrated on images, and refused if it loses more
    than 0.3 points of accuracy. `--to all` writes every format and says which one to ship on this machine.

    Parameters
    ----------
    to
        onnx, openvino (an .xml file and a .bin file), onnx-int8, openvino-int8, or all of them.
    out
        The file, ending in .onnx or .xml; for all, a folder, created if necessary. Default: the model's name in the
        current folder.
    calibrate
        For int8: a data set or folder, as for `mlpconv evaluate`. Default: the data that the model file names.
    images
        For int8: unlabelled image files or folders, instead of --calibrate; half of them measure the change.
    json
        Print one JSON object.
    """
    from mlpconv.deploy.exportable import open_exportable
    from mlpconv.deploy.exporting import export_variants, suffix_of
    from mlpconv.deploy.metadata import VARIANTS

    check_data_dir(data_dir, calibrate, "--calibrate")
    variants = VARIANTS if to == "all" else (to,)
    stem = _stem(model)
    folder = (out if out is not None else Path()) if to == "all" else None
    if folder is not None:
        files = [folder / f"{stem}{_mark(variant)}{suffix_of(variant)}" for variant in variants]
    else:
        files = [out if out is not None else Path(f"{stem}{_mark(to)}{suffix_of(to)}")]
    _check_files(files, model, folder)
    source = open_exportable(model)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    needs_images = any(name.endswith("int8") for name in variants)
    calibration = _calibration(source, calibrate, images, data_dir) if needs_images else None
    exported = export_variants(source, dict(zip(variants, files, strict=True)), calibration)
    table = _measured(exported, calibration) if to == "all" else []
    if json:
        _print_json(exported, table)
    else:
        _print_report(exported, table)


def _stem(model: str) -> str:
    """Return the name of a model file without extension, of a run folder, or of a network."""
    path = Path(model.rpartition(":")[2])
    return path.stem if path.suffix == ".safetensors" else path.name or "model"


def _mark(variant: str) -> str:
    return "-int8" if variant.endswith("int8") else ""


def _check_files(files: list[Path], model: str, folder: Path | None) -> None:
    """Raise UsageError, before any work, for files that cannot be written; `folder` is created later if necessary."""
    from mlpconv.cli.paths import check_target
    from mlpconv.errors import UsageError

    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {str(folder)!r} is a file: with --to all, give a folder.")
    for file in files:
        if folder is None or folder.exists():
            check_target(file, "--out")
        if file.resolve() == Path(model).resolve():
            raise UsageError(f"--out {str(file)!r} is the model itself: give another file.")


def _calibration(source: Exportable, data: str | None, images: tuple[str, ...], root: Path | None) -> Calibration:
    """Return the images to calibrate on."""
    from mlpconv.cli.paths import expand
    from mlpconv.deploy.calibration import calibration_from_data, calibration_from_files
    from mlpconv.errors import UsageError

    if images and data is not None:
        raise UsageError("--calibrate and --images both give images for int8: give one of them.")
    if images:
        return calibration_from_files(source, expand(images))
    return calibration_from_data(source, data, root)


def _measured(exported: list[Exported], calibration: Calibration | None) -> list[Variant]:
    from mlpconv.deploy.variants import measure_variants

    return measure_variants(exported, calibration)


def _print_json(exported: list[Exported], table: list[Variant]) -> None:
    from mlpconv.deploy.variants import advice
    from mlpconv.files import json_bytes

    document: dict[str, Any] = {
        "files": [
            {
                "file": str(item.path),
                "variant": item.variant,
                "bytes": item.bytes,
                "outputs": list(item.metadata.outputs),
                "any_size": item.metadata.any_size,
                "checks": item.metadata.checks,
                "notes": list(item.notes),
            }
            for item in exported
        ]
    }
    if table:
        document |= {"variants": [row.to_dict() for row in table], "advice": advice(table)}
    sys.stdout.write(json_bytes(document).decode())


def _print_report(exported: list[Exported], table: list[Variant]) -> None:
    from mlpconv.cli.show import open_console, say

    console = open_console()
    for item in exported:
        size = "any image size" if item.metadata.any_size else "one image size"
        say(console, f"{item.path}: {item.variant}, {item.bytes / 1e6:.1f} MB, {size}, {_outcome(item)}")
        for note in item.notes:
            say(console, f"  {note}")
    if table:
        _print_table(table)


def _outcome(item: Exported) -> str:
    """Return how an exported file compares with torch."""
    if item.parity is not None:
        largest = max(item.parity.logits, item.parity.maps)
        return f"differs from torch by at most {largest:.0e} of the largest logit on {item.parity.images} images"
    result = item.quantized
    if result is None:
        return "not compared"
    if result.accuracy is None or result.float_accuracy is None:
        return f"{result.agreement:.1%} of {result.held_out_images} images keep their class ({result.data})"
    points = f"accuracy {result.accuracy:.2%}, float32 {result.float_accuracy:.2%}"
    return f"{points} on {result.held_out_images} images ({result.data})"


def _print_table(table: list[Variant]) -> None:
    from rich.table import Table

    from mlpconv.cli.show import open_console, say
    from mlpconv.deploy.variants import advice

    grid = Table()
    for name in ("file", "engine"):
        grid.add_column(name, overflow="fold")
    for name in ("accuracy", "p50, 1 image", "images/s", "size"):
        grid.add_column(name, justify="right")
    for row in table:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}"
        size, speed = f"{row.bytes / 1e6:.1f} MB", f"{row.images_per_second:,.0f}"
        grid.add_row(row.file, row.engine, accuracy, f"{row.p50_ms:.2f} ms", speed, size)
    console = open_console()
    console.print(grid)
    say(console, advice(table))
