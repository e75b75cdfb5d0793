"""Measure the time of surgery and its speed-up: `python benchmarks/surgery.py` (needs the extra `vision`).

Measures how long the operations take on ResNet-50, and how much faster one pass over a larger image is than the
original on each crop. Uses random weights and writes results/surgery.json.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from common import machine, spread, write_result

SLIDING = ("alexnet", "vgg11", "resnet18", "resnet50")
CELLS = 8
"""Cells of the map along each side."""


def main() -> int:
    """Run the benchmark, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operated", default="resnet50", help="torchvision network to time the operations on")
    parser.add_argument("--slid", nargs="*", default=SLIDING, help="torchvision networks to compare with crops")
    parser.add_argument("--size", type=int, default=224, help="rows and columns of a window")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    operations = {name: operation(name, args) for name in ("convolutionalize", "pool_head")}
    maps = {name: sliding(name, args) for name in args.slid}
    path = write_result("surgery", {"operations": operations, "maps": maps, "machine": machine()})
    print(f"written to {path}")
    return 0


def operation(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of one operation with verification and report, after a warm-up run."""
    from mlpconv import surgery
    from mlpconv.inference.open_network import open_network

    model, _ = open_network(f"torchvision:{args.operated}")
    times = []
    for run in range(args.runs + 1):
        start = time.perf_counter()
        result = getattr(surgery, name)(model, (3, args.size, args.size))
        if run:
            times.append(time.perf_counter() - start)
    worst = max(difference.relative for difference in result.report.differences if difference.dtype == "float64")
    seconds = spread(times)
    print(f"{name} on {args.operated}: {seconds['mean']:.2f} s (n={seconds['n']}), float64 {worst:.1e}")
    return {"model": args.operated, "seconds": seconds, "float64_relative": worst}


def sliding(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of one dense pass, and of the original on the crop of each cell."""
    import torch

    from mlpconv.inference.open_network import open_network
    from mlpconv.surgery import convolutionalize

    size = args.size
    model = open_network(f"torchvision:{name}")[0].eval()
    result = convolutionalize(model, (3, size, size), latency=False)
    rows, columns = result.report.details["step"]
    image = torch.randn(1, 3, size + (CELLS - 1) * rows, size + (CELLS - 1) * columns)
    corners = [(rows * y, columns * x) for y in range(CELLS) for x in range(CELLS)]
    crops = torch.cat([image[:, :, y : y + size, x : x + size] for y, x in corners])
    batches = [crops[start : start + 16] for start in range(0, len(crops), 16)]
    methods: dict[str, Callable[[], object]] = {
        "one pass": lambda: result.model(image),
        "crop by crop": lambda: [model(crop[None]) for crop in crops],
        "crops in batches of 16": lambda: [model(batch) for batch in batches],
    }
    with torch.no_grad():
        seconds = {method: spread([timed(run) for _ in range(args.runs)]) for method, run in methods.items()}
    mean = seconds["one pass"]["mean"]
    gain = seconds["crop by crop"]["mean"] / mean
    print(f"{name}: {CELLS}x{CELLS} cells in {mean:.3f} s, {gain:.1f} times as fast as crop by crop")
    return {"cells": [CELLS, CELLS], "image": list(image.shape), "seconds": seconds}


def timed(run: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
