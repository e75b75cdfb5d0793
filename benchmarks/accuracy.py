"""Train a recipe from several seeds and report the error: mean, deviation and n.

    python benchmarks/accuracy.py mnist --seeds 3 --set val_fraction=0 --judge test
    python benchmarks/accuracy.py cifar10 --recipe best --seeds 1
    python benchmarks/accuracy.py cifar10 --seeds 2 --set epochs=13 crop=4 ema=0.98 eval_every=13 --name fast-13

With `--judge val` (the default) the error is that of the last epoch on the held-out part of the training images, and
beside it that of the kept network with each image's mirror image averaged in. With `--judge test` all choices have
been made before, and the test images are looked at once a seed. Runs are kept in `--runs` (default runs/accuracy) and
gone on with where they were stopped. Writes benchmarks/results/accuracy-DATA-RECIPE.json; `--name` stands for the
recipe's there and in the folders of runs, where `--set` makes it another recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import spread, write_result

import mlpconv
from mlpconv.cli.training_output import Lines
from mlpconv.data.as_trained import open_as_trained
from mlpconv.errors import Interrupted
from mlpconv.training.recipe import parse_setting


def one_seed(asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train, or take the finished run, and judge it."""
    folder = asked.runs / f"{asked.data}-{asked.name}-{seed}"
    settings = dict(parse_setting(text) for text in asked.set) | {"seed": seed}
    going_on = (folder / "recipe.json").is_file()
    run = mlpconv.fit(
        asked.data, asked.recipe, out=folder, resume=going_on, data_root=asked.root, progress=Lines(), **settings
    )
    last = run.history[-1]
    row = {name: last[name] for name in ("epoch", "seconds", "cpu_seconds")} | {"seed": seed}
    row["images_per_second"] = max(entry["images_per_second"] for entry in run.history)
    if asked.judge == "val":
        held_out = open_as_trained(asked.data, asked.root, run.classifier).split("val")
        flipped = mlpconv.evaluate(run.classifier, held_out, tta_flip=True)
        return row | {"error": 1 - last["val_accuracy"], "error_with_tta_flip": flipped.error}
    test = mlpconv.open_data(asked.data, root=asked.root).split("test")
    return row | {"error": mlpconv.evaluate(run.classifier, test).error}


def main() -> None:
    """Run every seed and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--name", help="of the result; the recipe's where none is given")
    parser.add_argument("--judge", choices=("val", "test"), default="val")
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    asked = parser.parse_args()
    asked.name = asked.name or asked.recipe
    try:
        rows = [one_seed(asked, seed) for seed in range(asked.seeds)]
    except Interrupted as stopped:
        raise SystemExit(f"{stopped} The same command goes on.") from None
    result = {"judged": asked.judge, "runs": rows} | {
        name: spread([row[name] for row in rows])
        for name in ("error", "error_with_tta_flip", "seconds", "cpu_seconds")
        if name in rows[0]
    }
    path = write_result(f"accuracy-{asked.data}-{asked.name}", result)
    error = result["error"]
    print(f"error {error['mean']:.2%} (sd {error['sd']:.2%}, n = {error['n']}); written to {path}")


if __name__ == "__main__":
    main()
