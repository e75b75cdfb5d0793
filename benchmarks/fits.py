"""Compare crop, pad and stretch on images of several aspect ratios, to choose the default.

    python benchmarks/fits.py
    python benchmarks/fits.py --seeds 1 --proportions 4

Images show four shapes (disc, square, triangle, cross) in noise, 40 pixels high, anywhere or near the centre. For each
aspect ratio (0: random from 1 to 4 per image) and each fit, measure the accuracy on the held-out fifth after 12 epochs
of `nin_tiny`. Writes benchmarks/results/fits.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import spread, write_result
from PIL import Image, ImageDraw

import mlpconv
from mlpconv.decode_options import FITS

HEIGHT, IMAGES_PER_CLASS = 40, 150
SHAPES = ("disc", "square", "triangle", "cross")
PLACES = ("anywhere", "centre")


def draw_image(shape: str, proportion: float, place: str, rng: np.random.Generator) -> Image.Image:
    """Draw a shape with random size, brightness and position."""
    width = round(HEIGHT * (proportion or rng.uniform(1, 4)))
    half = rng.uniform(0.15, 0.3) * HEIGHT
    x = rng.uniform(half, width - half) if place == "anywhere" else np.clip(rng.normal(0.5, 0.1), 0, 1) * width
    y = rng.uniform(half, HEIGHT - half)
    image = Image.fromarray(rng.integers(0, 160, (HEIGHT, width), dtype=np.uint8))
    draw, light = ImageDraw.Draw(image), int(rng.integers(120, 200))
    if shape == "disc":
        draw.ellipse((x - half, y - half, x + half, y + half), light)
    elif shape == "square":
        draw.rectangle((x - half, y - half, x + half, y + half), light)
    elif shape == "triangle":
        draw.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], light)
    else:
        draw.rectangle((x - half, y - half / 3, x + half, y + half / 3), light)
        draw.rectangle((x - half / 3, y - half, x + half / 3, y + half), light)
    return image


def make_folder(folder: Path, proportion: float, place: str) -> Path:
    """Create a folder of class folders."""
    rng = np.random.default_rng(7)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for i in range(IMAGES_PER_CLASS):
            draw_image(shape, proportion, place, rng).save(folder / shape / f"{i:03}.png")
    return folder


def accuracy(folder: Path, out: Path, fit: str, seed: int) -> float:
    """Return the accuracy on the held-out images after the last epoch."""
    settings: dict[str, Any] = {
        "size": 32,
        "epochs": 12,
        "min_steps": 0,
        "batch_size": 64,
        "seed": seed,
        "precision": "fp32",
    }
    run = mlpconv.fit(folder, out=out, fit=fit, model="nin_tiny", **settings)
    return float(run.history[-1]["val_accuracy"] or 0)


def main() -> None:
    """Measure every combination and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--proportions", type=float, nargs="*", default=[3 / 2, 2, 4, 0])
    options = parser.parse_args()
    rows = []
    for place in PLACES:
        for proportion in options.proportions:
            with tempfile.TemporaryDirectory() as top:
                folder = make_folder(Path(top, "shapes"), proportion, place)
                row: dict[str, object] = {"place": place, "proportion": round(proportion, 3)}
                for fit in FITS:
                    outs = [Path(top, f"{fit}-{seed}") for seed in range(options.seeds)]
                    row[fit] = spread([accuracy(folder, out, fit, seed) for seed, out in enumerate(outs)])
            print(row, flush=True)
            rows.append(row)
    print(write_result("fits", {"rows": rows}))


if __name__ == "__main__":
    main()
