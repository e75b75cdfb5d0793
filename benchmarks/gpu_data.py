"""Write data sets in parts that are small enough to carry to a GPU machine, and put them together there.

    python benchmarks/gpu_data.py [cifar10 mnist cifar100] [--root FOLDER] [--parts 3]

The parts lie in `.gpu-data/part-0`, `part-1`, ... for CIFAR-10, and in `.gpu-data/NAME/part-0`, ... for the others
(ignored by git): lossless WebP mosaics of 1,000 training images each, about 27 MB a part for CIFAR-10, the labels and
the class names. `load` reads whatever parts are there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

import mlpconv
from mlpconv.data import Split, make_dataset

FOLDER = Path(__file__).resolve().parents[1] / ".gpu-data"
COLUMNS, SHEET = 25, 1000
CLASSES = "classes.json"


def main() -> None:
    """Write the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["cifar10"], help="data sets; cifar10 by default")
    parser.add_argument("--root", type=Path, help="folder of the data, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--parts", type=int, default=3)
    options = parser.parse_args()
    for name in options.data:
        write(name, options.root, options.parts)


def write(name: str, root: Path | None, parts: int) -> None:
    """Write the training images of a data set in parts."""
    dataset = mlpconv.open_data(name, root=root)
    train = dataset.split("train")
    for part, numbers in enumerate(np.array_split(np.arange(len(train) // SHEET), parts)):
        folder = folder_of(name) / f"part-{part}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CLASSES).write_text(json.dumps(dataset.classes), encoding="utf-8")
        for number in numbers:
            rows = slice(number * SHEET, (number + 1) * SHEET)
            mosaic(train.images[rows]).save(folder / f"{number:02d}.webp", lossless=True, quality=80, method=4)
            (folder / f"{number:02d}.labels").write_bytes(train.labels[rows].astype(np.uint8).tobytes())
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name} {folder.name}: {len(numbers) * SHEET:,} images, {size / 1e6:.1f} MB")


def folder_of(name: str) -> Path:
    """Return the folder of the parts of a data set."""
    return FOLDER if name == "cifar10" else FOLDER / name


def mosaic(images: np.ndarray) -> Image.Image:
    """Return 1,000 images (N, C, H, W), grey or in colour, as one picture of 25 columns."""
    n, channels, height, width = images.shape
    rows = images.reshape(-1, COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = rows.reshape(n // COLUMNS * height, COLUMNS * width, channels)
    return Image.fromarray(np.repeat(pixels, 3, axis=2) if channels == 1 else pixels)


def load(name: str = "cifar10", validation: int = 5000) -> mlpconv.Dataset | None:
    """Return the images of all parts with the last `validation` held out; None where there is no part."""
    sheets = sorted(folder_of(name).glob("part-*/*.webp"), key=lambda path: path.name)
    if not sheets:
        return None
    images, labels = [], []
    for sheet in sheets:
        with Image.open(sheet) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if (pixels == pixels[:, :, :1]).all():  # no sheet of colour images is grey throughout
            pixels = pixels[:, :, :1]
        side = pixels.shape[1] // COLUMNS
        rows = pixels.reshape(-1, side, COLUMNS, side, pixels.shape[2]).transpose(0, 2, 4, 1, 3)
        images.append(rows.reshape(-1, pixels.shape[2], side, side))
        labels.append(np.frombuffer(sheet.with_suffix(".labels").read_bytes(), np.uint8).astype(np.int64))
    classes = tuple(json.loads((sheets[0].parent / CLASSES).read_text("utf-8")))
    pixels, numbers = np.concatenate(images), np.concatenate(labels)
    held_out = min(validation, len(pixels) // 10)
    splits = {
        "train": Split(pixels[:-held_out], numbers[:-held_out]),
        "val": Split(pixels[-held_out:], numbers[-held_out:]),
    }
    return make_dataset(name, classes, splits, published=True)


if __name__ == "__main__":
    main()
