"""Write the weights that ship with the package from a finished run: batch norm folded, float16, evaluated again.

    python benchmarks/ship.py runs/cifar10-001 src/mlpconv/weights/nin_cifar10.safetensors

Batch norm is folded into the convolutions, so that the file has the parameters of the published network; weights are
stored as float16. The file is evaluated as users load it, on the validation split, and is not written if accuracy drops
by more than 0.05 points.

A run on all images has no validation split. `--evaluated FILE` names an earlier output of this script, for a run with
the same recipe and seed on part of the images: the new file gets its metrics, with the number of its training images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import mlpconv
from mlpconv.data.as_trained import open_as_trained
from mlpconv.inference import Classifier
from mlpconv.models.folding import fold_norm

MAX_LOSS = 0.0005  # of accuracy
DIFFERENT_SETTING = "val_fraction"
"""The only setting in which a run and the run of `--evaluated` may differ."""


def main() -> None:
    """Fold batch norm, convert to float16, evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("file", type=Path, help="the model file to write")
    parser.add_argument("--evaluated", type=Path, help="for a run on all images: the file with its metrics")
    parser.add_argument("--root", type=Path, help="folder of the data, if not the cache or $MLPCONV_DATA")
    args = parser.parse_args()
    trained = mlpconv.load(args.run)
    splits = open_as_trained(trained.info["data"], args.root, trained).splits
    if ("val" in splits) is (args.evaluated is not None):
        raise SystemExit("A run without a validation split needs --evaluated FILE; a run with one is evaluated on it.")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.safetensors"
        write(draft, trained, {})
        shipped = mlpconv.load(draft)
    split = splits["train"] if args.evaluated else splits["val"]
    original, folded = (mlpconv.evaluate(classifier, split) for classifier in (trained, shipped))
    if folded.error > original.error + MAX_LOSS:
        raise SystemExit(
            f"folding and float16 raise the error from {original.error:.2%} to {folded.error:.2%}: not written"
        )
    if args.evaluated:
        metrics = stored_metrics(args.evaluated, trained)
    else:
        flipped = mlpconv.evaluate(shipped, split, tta_flip=True).error
        metrics = {"images": folded.n, "error": folded.error, "error_interval": list(folded.error_interval)}
        metrics |= {"error_with_tta_flip": flipped, "log_loss": folded.log_loss, "error_before": original.error}
        metrics |= {"train_images": trained.info["train_images"]}
    about = {"norm": "folded", "weights": "float16", "validation": metrics}
    args.file.parent.mkdir(parents=True, exist_ok=True)
    write(args.file, trained, {"shipped": about})
    parameters = sum(parameter.numel() for parameter in shipped.model.parameters())
    print(f"{args.file}: {parameters:,} parameters, {args.file.stat().st_size:,} bytes, error {metrics['error']:.2%}")


def stored_metrics(file: Path, trained: Classifier) -> dict[str, Any]:
    """Return the metrics of the same recipe and seed on part of the images; raises SystemExit for another recipe."""
    info = mlpconv.load(file).info
    first, second = dict(info["recipe"]), dict(trained.info["recipe"])
    differing = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    if differing != [DIFFERENT_SETTING]:
        raise SystemExit(
            f"{file} has a recipe that differs in {', '.join(differing)}: only {DIFFERENT_SETTING} may differ"
        )
    metrics: dict[str, Any] = info["shipped"]["validation"]
    return metrics


def write(path: Path, trained: Classifier, about: dict[str, Any]) -> None:
    """Write the classifier with batch norm folded, as float16."""
    folded = fold_norm(trained.model)
    mlpconv.save(
        path,
        folded,
        trained.preprocessing,
        classes=trained.classes,
        input_size=trained.input_size,
        info=portable(trained.info) | about,
        half=True,
    )


def portable(info: dict[str, Any]) -> dict[str, Any]:
    """Return what a model file says of its training without the folders of this machine: of a path, RUNS/NAME."""

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shortened(item) for key, item in value.items()}
        return str(Path(*Path(value).parts[-2:])) if isinstance(value, str) and Path(value).is_absolute() else value

    return {key: shortened(value) for key, value in info.items()}


if __name__ == "__main__":
    main()
