"""Compare two classifiers on the same images: those that both were trained without.

    python benchmarks/compare_models.py benchmarks/results/nin_cifar10-40000.safetensors nin_cifar10_taught

Both must have been trained on the same part of the same data. Reports the error, log loss and calibration error of
each, how many images only one of them classifies correctly, and the difference of the errors with its 95 % interval.
Writes results/compare_models.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import write_result

import mlpconv
from mlpconv.claims.statistics import paired_interval
from mlpconv.data import Split
from mlpconv.data.as_trained import open_as_trained
from mlpconv.inference import Classifier


def main() -> None:
    """Evaluate both, and report the paired difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="a model file, a run folder or a shipped network")
    parser.add_argument("second", help="another one")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the cache or $MLPCONV_DATA")
    args = parser.parse_args()
    first, second = mlpconv.load(args.first), mlpconv.load(args.second)
    split = held_out(first, second, args.root)
    rows, wrong = {}, []
    for name, classifier in {args.first: first, args.second: second}.items():
        found = mlpconv.evaluate(classifier, split)
        rows[name] = {key: getattr(found, key) for key in ("error", "log_loss", "calibration_error")}
        wrong.append((found.predicted != found.labels).astype(int))
        print(name, ", ".join(f"{key} {value:.4f}" for key, value in rows[name].items()))
    fewer = wrong[0] - wrong[1]  # 1 where only the second is right
    only = {args.first: int((fewer < 0).sum()), args.second: int((fewer > 0).sum())}
    low, high = paired_interval(fewer)
    difference = {"mean": float(fewer.mean()), "low": float(low), "high": float(high)}
    print(f"right alone: {only}; the second has {difference['mean']:.2%} less error ({low:.2%} to {high:.2%})")
    write_result(
        "compare_models",
        {"images": len(split), "models": rows, "right_alone": only, "less_error_of_second": difference},
    )


def held_out(first: Classifier, second: Classifier, root: Path | None) -> Split:
    """Return the validation images of both; raises SystemExit if they are not the same."""
    splits = [open_as_trained(one.info["data"], root, one).splits.get("val") for one in (first, second)]
    one, other = splits
    if one is None or other is None or len(one) != len(other) or not same(one, other):
        raise SystemExit("The two were not trained on the same part of the same data: their held-out images differ.")
    return one


def same(one: Split, other: Split) -> bool:
    """Return whether two splits have the same images and labels, in the same order."""
    return np.array_equal(one.labels, other.labels) and np.array_equal(one.images, other.images)


if __name__ == "__main__":
    main()
