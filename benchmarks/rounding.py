"""Compare the shipped networks in bfloat16 with float32: how many images keep their class, and how far logits move.

    python benchmarks/rounding.py [--images 500] [--data FOLDER]

The images are training images of CIFAR-10, enlarged to each network's size. Both run in the engine of
`Classifier.predict`; `auto` uses bfloat16 only for networks that keep nearly all classes. Writes results/rounding.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import write_result

import mlpconv
from mlpconv.data.converted import convert_images
from mlpconv.inference.engine import Engine
from mlpconv.inference.layer_chain import chain_of

NETWORKS = ("nin_cifar10", "squeezenet", "efficientnet_lite0")
PART = 50  # images at a time


def compare(name: str, images: Any) -> dict[str, float]:
    """Return the fraction of images that keep their class in bfloat16, and the differences of probabilities."""
    classifier = mlpconv.load(name)
    chain = chain_of(classifier.model, classifier.input_size[1:])
    if chain is None:
        raise SystemExit(f"{name} has no engine")
    engines = [Engine(chain, dtype) for dtype in (torch.float32, torch.bfloat16)]
    rows: list[list[torch.Tensor]] = [[], []]
    with torch.inference_mode():
        for start in range(0, len(images), PART):
            pixels = convert_images(images[start : start + PART], classifier.input_size)
            x = classifier.preprocessing(torch.from_numpy(pixels))
            for engine, part in zip(engines, rows, strict=True):
                part.append(engine(x).softmax(1))
    exact, rounded = (torch.cat(part) for part in rows)
    best = exact.max(1)
    moved = (best.values - rounded.gather(1, best.indices[:, None])[:, 0]).abs()
    return {
        "same_class": float((best.indices == rounded.argmax(1)).double().mean()),
        "mean_probability": float(best.values.mean()),
        "mean_change": float(moved.mean()),
        "largest_change": float((exact - rounded).abs().max()),
    }


def main() -> None:
    """Compare all networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--data", type=Path, help="folder with the files of CIFAR-10; default: the cache")
    arguments = parser.parse_args()
    split = mlpconv.open_data("cifar10", root=arguments.data, val_fraction=0).split("train")
    result: dict[str, Any] = {"images": arguments.images, "networks": {}}
    for name in NETWORKS:
        row = compare(name, split.images[: arguments.images])
        result["networks"][name] = row
        print(f"{name}: {row['same_class']:.1%} of {arguments.images} images keep their class", flush=True)
    write_result("rounding", result)


if __name__ == "__main__":
    main()
