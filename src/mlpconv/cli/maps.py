"""`mlpconv maps`: draw class activation maps (CAM), where in an image each class was seen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpconv.cli.options import Model, Switch, check_from_one

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mlpconv.inference import Classifier
    from mlpconv.maps import MapResult

__all__ = ["maps"]

FAILED = 1
SHEET_ROWS = 20  # images per sheet
MAX_SIDE = 320  # pixels of the image under a map, if the file has more than the network's input
MAX_STEM = 180  # bytes of a file name that go into the name of its output
MAX_FOLDERS = 100_000


def maps(
    model: Model,
    /,
    *images: str,
    out: Path | None = None,
    top: int = 3,
    recursive: bool = True,
    force: Switch = False,
    json: Switch = False,
) -> int:
    """Draw class activation maps (CAM) over images: where the network sees each of the most probable classes.

    The map is the category map, whose mean is the class's logit. A file that cannot be read is reported on stderr and
    skipped; the exit code is then 1.

    Parameters
    ----------
    images
        Image files, folders of images, or quoted patterns such as 'photos/*.jpg'.
    out
        Folder for NAME-maps.png of each image, and sheet.png with all images. Default: maps-001, maps-002, ...
    top
        Classes drawn for each image.
    recursive
        Search subfolders.
    force
        Overwrite existing output.
    json
        Print one JSON object; positions are in pixels of the file.
    """
    from mlpconv import inference
    from mlpconv.cli.paths import find_images
    from mlpconv.cli.reading import say_left_out

    check_from_one(top=top)
    listing = find_images(images, recursive)
    files = listing.files
    if out is not None:
        _check_output(out, [name for names in _targets(files) for name in names], force)
    classifier = inference.load(model)
    say_left_out(listing)
    rows, sheets = _draw_all(classifier, files, out, top)
    if json:
        _print_json(rows, sheets)
    else:
        _print_table(rows, sheets)
    return FAILED if len(rows) < len(files) or listing.unreadable else 0


def _draw_all(
    classifier: Classifier, files: Sequence[Path], out: Path | None, top: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw every readable image, one sheet at a time; return a row per image and the paths of the sheets.

    The output folder is created with the first image.
    """
    from mlpconv.cli.bar import Bar

    targets, sheets = _targets(files)
    folder: Path | None = None
    rows: list[dict[str, Any]] = []
    written: list[str] = []
    with Bar("drawing", len(files)) as bar:
        for sheet, start in zip(sheets, range(0, len(files), SHEET_ROWS), strict=True):
            batch = slice(start, start + SHEET_ROWS)
            images = list(_read(classifier, files[batch], targets[batch]))
            if images:
                result = _compute(classifier, images)
                folder = folder or _make_folder(out)
                rows += _draw(result, images, top, folder, sheet)
                written.append(str(folder / sheet))
            bar(min(start + SHEET_ROWS, len(files)))
    return rows, written


def _targets(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Return an output file name per image, unique regardless of case, and the names of the sheets."""
    sheets = ["sheet.png", *(f"sheet-{number}.png" for number in range(2, -(-len(files) // SHEET_ROWS) + 1))]
    used: set[str] = set()
    targets: list[str] = []
    for file in files:
        stem = os.fsencode(file.stem)[:MAX_STEM].decode(sys.getfilesystemencoding(), "ignore")
        name, count = f"{stem}-maps.png", 1
        while name.lower() in used:
            count += 1
            name = f"{stem}-{count}-maps.png"
        used.add(name.lower())
        targets.append(name)
    return targets, sheets


def _check_output(folder: Path, names: Sequence[str], force: bool) -> None:
    """Raise RunFolderError if the output cannot be written to `folder`, or would overwrite files without `force`."""
    from mlpconv.errors import RunFolderError

    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file: give --out a folder.")
    existing = [name for name in names if (folder / name).exists()]
    if existing and not force:
        others = f" (and {len(existing) - 1} others)" if len(existing) > 1 else ""
        raise RunFolderError(
            f"{folder / existing[0]}{others} already exists: give --out another folder, or --force to overwrite."
        )


def _make_folder(out: Path | None) -> Path:
    """Create the output folder: `out`, or the first of maps-001, maps-002, ... that does not exist."""
    from mlpconv.errors import RunFolderError

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
    for number in range(1, MAX_FOLDERS):
        folder = Path(f"maps-{number:03d}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RunFolderError(f"maps-001 to maps-{MAX_FOLDERS - 1} already exist: give a folder with --out.")


def _read(classifier: Classifier, files: Sequence[Path], targets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield each readable file with its input pixels and a sharper image; report the others on stderr."""
    from mlpconv.cli.reading import finer, readable
    from mlpconv.data.decode import decode, header

    channels, height, width = classifier.input_size
    decode_options = classifier.preprocessing.decode_options

    def read(file: Path) -> tuple[Tensor, np.ndarray, tuple[int, int]]:
        image = decode(file, channels=channels, decode_options=decode_options)
        return classifier.pixels(file), image, _upright_size(image.shape[1:], header(file)[:2])

    for file, target in zip(files, targets, strict=True):
        for _, (pixels, image, size) in readable([file], read):
            background = finer(image, (height, width), MAX_SIDE, decode_options)
            yield {
                "file": file, "target": target, "pixels": pixels, "background": background, "size": size,
                "fit": decode_options.fit,
            }  # fmt: skip


def _upright_size(decoded: Sequence[int], sides: tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of the upright image from its header; a huge JPEG is decoded at a lower resolution."""
    turned = (decoded[0] > decoded[1]) != (sides[0] > sides[1])
    return sides[::-1] if turned else sides


def _compute(classifier: Classifier, images: Sequence[dict[str, Any]]) -> MapResult:
    """Return the category maps of images."""
    from dataclasses import replace

    import torch

    from mlpconv.maps import category_maps

    result = category_maps(classifier, torch.cat([image["pixels"] for image in images]))
    return replace(result, sources=tuple(str(image["file"]) for image in images))


def _draw(
    result: MapResult, images: Sequence[dict[str, Any]], top: int, folder: Path, sheet: str
) -> list[dict[str, Any]]:
    """Write the overlays of images and their sheet; return a row per image."""
    from mlpconv.plots import map_sheet, overlay, save_figure

    rows = []
    for index, image in enumerate(images):
        path = save_figure(overlay(result, index, top, on=image["background"]), folder / image["target"])
        rows.append(_row(result, index, top, image["size"], image["fit"]) | {"picture": str(path)})
    save_figure(map_sheet(result, top, pictures=[image["background"] for image in images]), folder / sheet)
    return rows


def _row(result: MapResult, index: int, top: int, original: tuple[int, int], fit: str) -> dict[str, Any]:
    """Return the most probable classes of one image with peaks and boxes in pixels of the upright file."""
    from mlpconv.maps import in_file

    size = (result.pixels.shape[2], result.pixels.shape[3])
    return {
        "file": result.sources[index],
        "width": original[1],
        "height": original[0],
        "classes": [
            {
                "label": seen.label,
                "confidence": seen.probability,
                "logit": seen.logit,
                "peak": None if seen.peak is None else in_file(seen.peak, size, original, fit)._asdict(),
                "box": None if seen.box is None else in_file(seen.box, size, original, fit)._asdict(),
            }
            for seen in result.top(index, top)
        ],
    }


def _print_json(rows: list[dict[str, Any]], sheets: list[str]) -> None:
    import json

    print(json.dumps({"images": rows, "sheets": sheets}, indent=2))


def _print_table(rows: list[dict[str, Any]], sheets: list[str]) -> None:
    """Print a table with one row per image and class, and the paths of the sheets."""
    from rich.table import Table
    from rich.text import Text

    from mlpconv.cli.show import open_console, say
    from mlpconv.text import printable

    table = Table()
    for name in ("image", "class", "confidence", "peak (x, y)", "picture"):
        table.add_column(name, overflow="fold", justify="right" if name in ("confidence", "peak (x, y)") else "left")
    for row in rows:
        for rank, seen in enumerate(row["classes"]):
            peak = seen["peak"]
            position = "none (constant map)" if peak is None else f"{round(peak['x'])}, {round(peak['y'])}"
            file, picture = (printable(row["file"]), printable(row["picture"])) if rank == 0 else ("", "")
            cells = (file, printable(seen["label"]), f"{seen['confidence']:.1%}", position, picture)
            table.add_row(*(Text(cell) for cell in cells))
        table.add_section()
    console = open_console()
    if rows:
        console.print(table)
    for sheet in sheets:
        say(console, f"Sheet: {printable(sheet)}")
