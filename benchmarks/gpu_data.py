"""Write CIFAR-10 in parts that are small enough to carry to a GPU machine, and put them together there.

    python benchmarks/gpu_data.py [--root FOLDER] [--parts 3]

The parts lie in `.gpu-data/part-0`, `part-1`, ... (ignored by git): lossless WebP mosaics of 1,000 training images
each, about 27 MB a part, and the labels. `load` reads whatever parts are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import mlpconv
from mlpconv.data import Split, make_dataset

FOLDER = Path(__file__).resolve().parents[1] / ".gpu-data"
COLUMNS, SHEET, SIDE = 25, 1000, 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def main() -> None:
    """Write the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of CIFAR-10, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--parts", type=int, default=3)
    options = parser.parse_args()
    train = mlpconv.open_data("cifar10", root=options.root).split("train")
    for part, numbers in enumerate(np.array_split(np.arange(len(train) // SHEET), options.parts)):
        folder = FOLDER / f"part-{part}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            rows = slice(number * SHEET, (number + 1) * SHEET)
            mosaic(train.images[rows]).save(folder / f"{number:02d}.webp", lossless=True, quality=80, method=4)
            (folder / f"{number:02d}.labels").write_bytes(train.labels[rows].astype(np.uint8).tobytes())
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder.name}: {len(numbers) * SHEET:,} images, {size / 1e6:.1f} MB")


def mosaic(images: np.ndarray) -> Image.Image:
    """Return 1,000 images (N, 3, 32, 32) as one picture of 25 columns."""
    rows = images.reshape(-1, COLUMNS, 3, SIDE, SIDE).transpose(0, 3, 1, 4, 2)
    return Image.fromarray(rows.reshape(rows.shape[0] * SIDE, COLUMNS * SIDE, 3))


def load(folder: Path = FOLDER, validation: int = 5000) -> mlpconv.Dataset | None:
    """Return the images of all parts with the last `validation` held out; None where there is no part."""
    sheets = sorted(folder.glob("part-*/*.webp"), key=lambda path: path.name)
    if not sheets:
        return None
    images, labels = [], []
    for sheet in sheets:
        with Image.open(sheet) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        rows = pixels.reshape(-1, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 4, 1, 3)
        images.append(rows.reshape(-1, 3, SIDE, SIDE))
        labels.append(np.frombuffer(sheet.with_suffix(".labels").read_bytes(), np.uint8).astype(np.int64))
    pixels, numbers = np.concatenate(images), np.concatenate(labels)
    held_out = min(validation, len(pixels) // 10)
    splits = {
        "train": Split(pixels[:-held_out], numbers[:-held_out]),
        "val": Split(pixels[-held_out:], numbers[-held_out:]),
    }
    return make_dataset("cifar10", CLASSES, splits)


if __name__ == "__main__":
    main()
