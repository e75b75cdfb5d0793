"""Train a recipe with several seeds and report the error: mean, standard deviation and n.

    python benchmarks/accuracy.py mnist --seeds 3 --set val_fraction=0 --split test
    python benchmarks/accuracy.py cifar10 --recipe best --seeds 1
    python benchmarks/accuracy.py cifar10 --seeds 2 --set epochs=13 crop=4 ema=0.98 eval_every=13 --name fast-13

With `--split val` (the default) the result is the validation error of the last epoch, and the error of the saved
network with test-time augmentation (flip). With `--split test` it is the test error, computed once per seed after all
choices are made. Runs are kept in `--runs` (default runs/accuracy) and resumed. Writes
benchmarks/results/accuracy-DATA-RECIPE.json; `--name` replaces the name of the recipe there and in the run folders,
for a recipe changed with `--set`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import spread, write_result

import mlpconv
from mlpconv.data.as_trained import open_as_trained
from mlpconv.errors import Interrupted
from mlpconv.training.display import Lines
from mlpconv.training.recipe import parse_setting


def train(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train, resume or load the run of a seed, and evaluate it."""
    folder = args.runs / f"{args.data}-{args.name}-{seed}"
    settings = dict(parse_setting(text) for text in args.set) | {"seed": seed}
    resume = (folder / "recipe.json").is_file()
    run = mlpconv.fit(
        args.data, args.recipe, out=folder, resume=resume, data_root=args.root, progress=Lines(print), **settings
    )
    last = run.history[-1]
    row = {name: last[name] for name in ("epoch", "seconds", "cpu_seconds")} | {"seed": seed}
    row["images_per_second"] = max(epoch["images_per_second"] for epoch in run.history)
    if args.split == "val":
        held_out = open_as_trained(args.data, args.root, run.classifier).split("val")
        flipped = mlpconv.evaluate(run.classifier, held_out, tta_flip=True)
        return row | {"error": 1 - last["val_accuracy"], "error_with_tta_flip": flipped.error}
    test = mlpconv.open_data(args.data, root=args.root).split("test")
    return row | {"error": mlpconv.evaluate(run.classifier, test).error}


def main() -> None:
    """Train every seed and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--name", help="name of the result; default: the name of the recipe")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="split to evaluate on")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    args = parser.parse_args()
    args.name = args.name or args.recipe
    try:
        rows = [train(args, seed) for seed in range(args.seeds)]
    except Interrupted as stopped:
        raise SystemExit(f"{stopped} Or run the same command again.") from None
    result = {"split": args.split, "runs": rows} | {
        name: spread([row[name] for row in rows])
        for name in ("error", "error_with_tta_flip", "seconds", "cpu_seconds")
        if name in rows[0]
    }
    path = write_result(f"accuracy-{args.data}-{args.name}", result)
    error = result["error"]
    print(f"error {error['mean']:.2%} (sd {error['sd']:.2%}, n = {error['n']}); written to {path}")


if __name__ == "__main__":
    main()
