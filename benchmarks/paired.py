"""Compare two classifiers on the same images: those that both were trained without.

    python benchmarks/paired.py benchmarks/results/nin_cifar10-40000.safetensors nin_cifar10_taught

Both must have been trained on the same part of the same data. Prints the error, log loss and calibration error of each,
how many images only one of them classifies correctly, and the difference of the errors with its 95 % interval (normal
approximation).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import mlpconv
from mlpconv.data.as_trained import open_as_trained


def main() -> None:
    """Evaluate both and print the paired difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="a model file, a run folder or a shipped network")
    parser.add_argument("second", help="another one")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the cache or $MLPCONV_DATA")
    args = parser.parse_args()
    names = (args.first, args.second)
    classifiers = [mlpconv.load(name) for name in names]
    splits = [open_as_trained(one.info["data"], args.root, one).splits.get("val") for one in classifiers]
    first, second = splits
    if first is None or second is None or not np.array_equal(first.labels, second.labels):
        raise SystemExit("The two were not trained on the same part of the same data: their held-out images differ.")
    found = [mlpconv.evaluate(one, split) for one, split in zip(classifiers, (first, second), strict=True)]
    for name, result in zip(names, found, strict=True):
        print(
            f"{name}: error {result.error:.2%} of {result.n:,} images, log loss {result.log_loss:.3f}, "
            f"calibration error {result.calibration_error:.1%}"
        )
    right = [result.predicted == result.labels for result in found]
    gained, lost = (int(np.sum(a & ~b)) for a, b in (right[::-1], right))
    half = 1.96 * np.sqrt(gained + lost - (gained - lost) ** 2 / len(right[0])) / len(right[0])
    print(f"only {names[1]} is right: {gained}; only {names[0]} is right: {lost}")
    print(f"{names[1]} is {(gained - lost) / len(right[0]):.2%} better, +- {half:.2%}")


if __name__ == "__main__":
    main()
