"""`mlpconv maps`: where in an image each class was seen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpconv.cli.options import Switch, check_from_one

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mlpconv.inference import Classifier
    from mlpconv.maps import MapResult

__all__ = ["maps"]

FAILED = 1
SHEET_ROWS = 20  # images a sheet shows; more images make more sheets
FINEST = 320  # dots to which a small input is drawn finer, where the file has them
LONGEST_STEM = 180  # bytes of a file's name that its picture's name begins with
MOST_FOLDERS = 100_000


def maps(
    model: str,
    /,
    *images: str,
    out: Path | None = None,
    top: int = 3,
    recursive: bool = True,
    force: Switch = False,
    json: Switch = False,
) -> int:
    """Draw where in an image each class was seen: its category map, over the image.

    A file that cannot be read is named on stderr and skipped; the exit code is then 1.

    Parameters
    ----------
    model
        A model file, a run folder, or the name of shipped weights: digits, nin_cifar10, nin_mnist.
    images
        Image files, folders of them, or quoted patterns such as 'photos/*.jpg'.
    out
        The folder for the pictures: NAME-maps.png for each image, and sheet.png with all of them. By default maps-001,
        counted up.
    top
        How many classes are drawn for each image.
    recursive
        Whether folders are searched with all that is in them.
    force
        Overwrite pictures that are there already.
    json
        Print one JSON object, for machines; places are in pixels of the file.
    """
    from mlpconv import inference
    from mlpconv.cli.paths import find
    from mlpconv.cli.reading import say_left_out

    check_from_one(top=top)
    found = find(images, recursive)
    files = found.files
    if out is not None:
        _refuse_overwriting(out, [name for names in _targets(files) for name in names], force)
    classifier = inference.load(model)
    say_left_out(found)
    rows, sheets = _look_at_all(classifier, files, out, top)
    if json:
        _print_json(rows, sheets)
    else:
        _print_table(rows, sheets)
    return FAILED if len(rows) < len(files) or found.unreadable else 0


def _look_at_all(
    classifier: Classifier, files: Sequence[Path], out: Path | None, top: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw every image that can be read, a sheet at a time: what was seen in each, and the paths of the sheets.

    The folder is made when there is something to write.
    """
    from mlpconv.cli.bar import Bar

    targets, sheets = _targets(files)
    folder: Path | None = None
    rows: list[dict[str, Any]] = []
    written: list[str] = []
    with Bar("looking", len(files)) as bar:
        for sheet, start in zip(sheets, range(0, len(files), SHEET_ROWS), strict=True):
            part = slice(start, start + SHEET_ROWS)
            read = list(_read(classifier, files[part], targets[part]))
            if read:
                result = _look(classifier, read)
                folder = folder or _make_folder(out)
                rows += _draw(result, read, top, folder, sheet)
                written.append(str(folder / sheet))
            bar(min(start + SHEET_ROWS, len(files)))
    return rows, written


def _targets(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """A file name for each image's picture, no two the same also where letter case does not count, and the sheets'."""
    sheets = ["sheet.png", *(f"sheet-{number}.png" for number in range(2, -(-len(files) // SHEET_ROWS) + 1))]
    used: set[str] = set()
    targets: list[str] = []
    for file in files:
        stem = os.fsencode(file.stem)[:LONGEST_STEM].decode(sys.getfilesystemencoding(), "ignore")
        name, count = f"{stem}-maps.png", 1
        while name.lower() in used:
            count += 1
            name = f"{stem}-{count}-maps.png"
        used.add(name.lower())
        targets.append(name)
    return targets, sheets


def _refuse_overwriting(folder: Path, names: Sequence[str], force: bool) -> None:
    from mlpconv.errors import RunFolderError

    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file: give --out a folder.")
    taken = [name for name in names if (folder / name).exists()]
    if taken and not force:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise RunFolderError(
            f"{folder / taken[0]}{more} exists already: give --out another folder, or --force to overwrite."
        )


def _make_folder(out: Path | None) -> Path:
    """The folder to write to: `out`, or the first of maps-001, maps-002, ... that is not there."""
    from mlpconv.errors import RunFolderError

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
    for number in range(1, MOST_FOLDERS):
        folder = Path(f"maps-{number:03d}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RunFolderError(f"maps-001 to maps-{MOST_FOLDERS - 1} exist already: give a folder with --out.")


def _read(classifier: Classifier, files: Sequence[Path], targets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The files that can be read, as the network takes them and as they are; the others are named on stderr."""
    from mlpconv.cli.reading import finer, readable
    from mlpconv.data.decode import decode, header

    channels, height, width = classifier.input_size
    decode_options = classifier.preprocessing.decode_options

    def look(file: Path) -> tuple[Tensor, np.ndarray, tuple[int, int]]:
        whole = decode(file, channels=channels, decode_options=decode_options)
        return classifier.pixels(file), whole, _size(whole.shape[1:], header(file)[:2])

    for file, target in zip(files, targets, strict=True):
        for _, (pixels, whole, size) in readable([file], look):
            drawn = finer(whole, (height, width), FINEST, decode_options)
            about = {"size": size, "fit": decode_options.fit}
            yield {"file": file, "target": target, "pixels": pixels, "drawn": drawn, **about}


def _size(decoded: Sequence[int], sides: tuple[int, int]) -> tuple[int, int]:
    """The (H, W) of the upright file, of which a huge JPEG is decoded at a fraction, from the sides in its header."""
    turned = (decoded[0] > decoded[1]) != (sides[0] > sides[1])
    return sides[::-1] if turned else sides


def _look(classifier: Classifier, read: Sequence[dict[str, Any]]) -> MapResult:
    """The category maps of images that have been read."""
    from dataclasses import replace

    import torch

    from mlpconv.maps import category_maps

    result = category_maps(classifier, torch.cat([one["pixels"] for one in read]))
    return replace(result, sources=tuple(str(one["file"]) for one in read))


def _draw(
    result: MapResult, read: Sequence[dict[str, Any]], top: int, folder: Path, sheet: str
) -> list[dict[str, Any]]:
    """Write the pictures of some images and their sheet; returns what was seen."""
    from mlpconv.plots import map_sheet, overlay, save_figure

    rows = []
    for index, one in enumerate(read):
        path = save_figure(overlay(result, index, top, on=one["drawn"]), folder / one["target"])
        rows.append(_row(result, index, top, one["size"], one["fit"]) | {"picture": str(path)})
    save_figure(map_sheet(result, top, pictures=[one["drawn"] for one in read]), folder / sheet)
    return rows


def _row(result: MapResult, index: int, top: int, original: tuple[int, int], fit: str) -> dict[str, Any]:
    """What was seen in one image, places in pixels of the upright file."""
    from mlpconv.maps import in_file

    size = (result.pixels.shape[2], result.pixels.shape[3])
    return {
        "file": result.sources[index],
        "width": original[1],
        "height": original[0],
        "classes": [
            {
                "label": one.label,
                "confidence": one.probability,
                "logit": one.logit,
                "peak": None if one.peak is None else in_file(one.peak, size, original, fit)._asdict(),
                "box": None if one.box is None else in_file(one.box, size, original, fit)._asdict(),
            }
            for one in result.top(index, top)
        ],
    }


def _print_json(rows: list[dict[str, Any]], sheets: list[str]) -> None:
    import json

    print(json.dumps({"images": rows, "sheets": sheets}, indent=2))


def _print_table(rows: list[dict[str, Any]], sheets: list[str]) -> None:
    """A table for a person."""
    from rich.table import Table
    from rich.text import Text

    from mlpconv.cli.show import open_console, say
    from mlpconv.text import printable

    table = Table()
    for name in ("image", "class", "confidence", "peak (x, y)", "picture"):
        table.add_column(name, overflow="fold", justify="right" if name in ("confidence", "peak (x, y)") else "left")
    for row in rows:
        for place, one in enumerate(row["classes"]):
            peak = one["peak"]
            where = "nowhere more than elsewhere" if peak is None else f"{peak['x']:.0f}, {peak['y']:.0f}"
            file, picture = (printable(row["file"]), printable(row["picture"])) if place == 0 else ("", "")
            table.add_row(
                *(Text(text) for text in (file, printable(one["label"]), f"{one['confidence']:.1%}", where, picture))
            )
        table.add_section()
    console = open_console()
    if rows:
        console.print(table)
    for sheet in sheets:
        say(console, f"All together: {printable(sheet)}")
