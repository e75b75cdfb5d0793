"""What surgery costs and gains: `python benchmarks/surgery.py`, with torchvision from the extra `vision`.

How long the operations take on ResNet-50, and how much faster one pass over a larger image is than the original on each
of its crops. Random weights. Writes results/surgery.json.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import Any

from common import machine, spread, write_result

SLIDING = ("alexnet", "vgg11", "resnet18", "resnet50")
CELLS = 8
"""Cells of the map along each side of the larger image."""


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operated", default="resnet50", help="the network of torchvision that is operated on")
    parser.add_argument("--slid", nargs="*", default=SLIDING, help="those whose maps are compared with crops")
    parser.add_argument("--size", type=int, default=224, help="rows and columns of an image")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    operations = {name: operation(name, asked) for name in ("convolutionalize", "pool_head")}
    maps = {name: sliding(name, asked) for name in asked.slid}
    path = write_result("surgery", {"operations": operations, "maps": maps, "machine": machine()})
    print(f"written to {path}")
    return 0


def operation(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one operation with its proof and its report, after one run that brings what PyTorch loads late."""
    from mlpconv import surgery
    from mlpconv.inference.open_network import open_network

    model, _ = open_network(f"torchvision:{asked.operated}")
    times = []
    for run in range(asked.runs + 1):
        began = time.perf_counter()
        result = getattr(surgery, name)(model, (3, asked.size, asked.size))
        if run:
            times.append(time.perf_counter() - began)
    worst = max(each.relative for each in result.report.differences if each.dtype == "float64")
    found = spread(times)
    print(f"{name} on {asked.operated}: {found['mean']:.2f} s (n={found['n']}), float64 {worst:.1e}")
    return {"model": asked.operated, "seconds": found, "float64_relative": worst}


def sliding(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one dense pass, and of the original on the crop of each cell."""
    import torch

    from mlpconv.inference.open_network import open_network
    from mlpconv.surgery import convolutionalize

    size = asked.size
    model = open_network(f"torchvision:{name}")[0].eval()
    result = convolutionalize(model, (3, size, size), latency=False)
    rows, columns = result.report.details["step"]
    image = torch.randn(1, 3, size + (CELLS - 1) * rows, size + (CELLS - 1) * columns)
    places = [(rows * y, columns * x) for y in range(CELLS) for x in range(CELLS)]
    crops = torch.cat([image[:, :, y : y + size, x : x + size] for y, x in places])
    ways = {
        "one pass": lambda: result.model(image),
        "crop by crop": lambda: [model(crop[None]) for crop in crops],
        "crops in batches of 16": lambda: [model(batch) for batch in crops.split(16)],
    }
    with torch.no_grad():
        found = {way: spread([timed(run) for _ in range(asked.runs)]) for way, run in ways.items()}
    gain = found["crop by crop"]["mean"] / found["one pass"]["mean"]
    print(
        f"{name}: {CELLS}x{CELLS} cells in {found['one pass']['mean']:.3f} s, {gain:.1f} times as fast as crop by crop"
    )
    return {"cells": [CELLS, CELLS], "image": list(image.shape), "seconds": found}


def timed(run: Any) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
