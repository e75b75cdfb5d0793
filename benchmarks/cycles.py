"""Memory of a process after many classifiers: `python benchmarks/cycles.py` writes results/cycles.json.

Two workloads, each in a separate process: load a network, predict and drop it; or change its weights and predict again.
`--cycles` sets the number of repetitions, `--widths` the width multipliers of nin_cifar10.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import write_result

import mlpconv
from mlpconv.inference import Classifier

IMAGES = 2
MARKS = 6  # number of memory samples


def main() -> int:
    """Measure every workload and width, and print and write the resident memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=120)
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0, 2.0])
    options = parser.parse_args()
    rows = []
    for workload in WORKLOADS:
        for width in options.widths:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                marks = pool.apply(_resident, (workload, width, options.cycles))
            rows.append({"way": workload, "width": width, "megabytes": marks})
            shown = ", ".join(f"{count} {size:.0f} MB" for count, size in marks.items())
            print(f"{workload}, width {width:g}: {shown}", flush=True)
    path = write_result("cycles", {"images": IMAGES, "rows": rows})
    print(f"written to {path}")
    return 0


def _resident(workload: str, width: float, cycles: int) -> dict[int, float]:
    """Return the resident megabytes after various numbers of cycles."""
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8)
    marks = {max(1, cycles * mark // MARKS) for mark in range(MARKS + 1)}
    megabytes: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        cycle = WORKLOADS[workload](width, Path(folder))
        for count in range(1, cycles + 1):
            cycle(pixels)
            if count in marks:
                megabytes[count] = _rss() / 1e6
    return megabytes


def _rss() -> int:
    """Return the resident set size in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _network(width: float, folder: Path) -> Path:
    """Write a model file of nin_cifar10 with random weights and this width multiplier."""
    torch.manual_seed(0)
    shipped, path = mlpconv.load("nin_cifar10"), folder / "network.safetensors"
    model = mlpconv.create_model("nin_cifar10", width=width)
    mlpconv.save(
        path,
        model,
        shipped.preprocessing,
        classes=shipped.classes,
        input_size=shipped.input_size,
        info={"width": width},
    )
    return path


def _load(width: float, folder: Path) -> Callable[[np.ndarray], None]:
    path = _network(width, folder)
    return lambda pixels: _predict(mlpconv.load(path), pixels)


def _change(width: float, folder: Path) -> Callable[[np.ndarray], None]:
    classifier = mlpconv.load(_network(width, folder))

    def cycle(pixels: np.ndarray) -> None:
        with torch.no_grad():
            for parameter in classifier.model.parameters():
                parameter.mul_(1.0)
        _predict(classifier, pixels)

    return cycle


def _predict(classifier: Classifier, pixels: np.ndarray) -> None:
    classifier.predict(pixels)


WORKLOADS = {"load and predict": _load, "change weights and predict": _change}


if __name__ == "__main__":
    sys.exit(main())
