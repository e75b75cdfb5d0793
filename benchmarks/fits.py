"""Train on images of several proportions, brought to squares in the three ways: which way should be usual?

    python benchmarks/fits.py
    python benchmarks/fits.py --seeds 1 --proportions 4

Four shapes (disc, square, triangle, cross) in noise, 40 pixels high: anywhere in the image, or near its centre, where
photographers put things. For each width to a height (0: of every image its own, from 1 to 4), and each way, the
accuracy on the held-out fifth after 12 epochs of `nin_tiny`. Writes benchmarks/results/fits.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import spread, write_result
from PIL import Image, ImageDraw

import mlpconv
from mlpconv.decode_options import FITS

HEIGHT, EACH = 40, 150
SHAPES = ("disc", "square", "triangle", "cross")
PLACES = ("anywhere", "centre")


def picture(shape: str, proportion: float, place: str, dice: np.random.Generator) -> Image.Image:
    """One shape of a size, brightness and place of its own."""
    width = round(HEIGHT * (proportion or dice.uniform(1, 4)))
    half = dice.uniform(0.15, 0.3) * HEIGHT
    x = dice.uniform(half, width - half) if place == "anywhere" else np.clip(dice.normal(0.5, 0.1), 0, 1) * width
    y = dice.uniform(half, HEIGHT - half)
    image = Image.fromarray(dice.integers(0, 160, (HEIGHT, width), dtype=np.uint8))
    draw, light = ImageDraw.Draw(image), int(dice.integers(120, 200))
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


def make(folder: Path, proportion: float, place: str) -> Path:
    """A folder of class folders."""
    dice = np.random.default_rng(7)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for i in range(EACH):
            picture(shape, proportion, place, dice).save(folder / shape / f"{i:03}.png")
    return folder


def accuracy(folder: Path, out: Path, fit: str, seed: int) -> float:
    """Of the last epoch on the images held out."""
    settings = {"size": 32, "epochs": 12, "min_steps": 0, "batch_size": 64, "seed": seed, "precision": "fp32"}
    run = mlpconv.fit(folder, out=out, fit=fit, model="nin_tiny", **settings)
    return float(run.history[-1]["val_accuracy"] or 0)


def main() -> None:
    """Measure every case and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--proportions", type=float, nargs="*", default=[3 / 2, 2, 4, 0])
    asked = parser.parse_args()
    rows = []
    for place in PLACES:
        for proportion in asked.proportions:
            with tempfile.TemporaryDirectory() as top:
                folder = make(Path(top, "shapes"), proportion, place)
                row: dict[str, object] = {"place": place, "proportion": round(proportion, 3)}
                for fit in FITS:
                    outs = [Path(top, f"{fit}-{seed}") for seed in range(asked.seeds)]
                    row[fit] = spread([accuracy(folder, out, fit, seed) for seed, out in enumerate(outs)])
            print(row, flush=True)
            rows.append(row)
    print(write_result("fits", {"rows": rows}))


if __name__ == "__main__":
    main()
