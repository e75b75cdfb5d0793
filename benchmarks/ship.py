"""Make the weights that ship with the package out of a finished run: norms folded away, halved, judged again.

    python benchmarks/ship.py runs/cifar10-001 src/mlpconv/weights/nin_cifar10.safetensors

Batch norm is worked into the convolutions, so that what ships has the published network's parameters; weights are
stored as float16. The file is judged as users will load it, on the images that training held out, and is not written
where that costs more than 0.05 points of accuracy.

A run that held nothing out has no images to be judged on. `--judged FILE` names what this script made before, of a run
with the same recipe and seed on a part of the images: its figures then stand in the file, and say how many images
that run was trained on.
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

MOST_LOST = 0.0005
APART = "val_fraction"
"""The one setting in which a run and the one that is judged for it may differ."""


def main() -> None:
    """Fold, halve, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("file", type=Path, help="the model file to write")
    parser.add_argument("--judged", type=Path, help="for a run on all images: whose figures stand for it")
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    asked = parser.parse_args()
    trained = mlpconv.load(asked.run)
    splits = open_as_trained(trained.info["data"], asked.root, trained).splits
    if ("val" in splits) is (asked.judged is not None):
        raise SystemExit("A run that held nothing out needs --judged FILE; one that held images out is judged on them.")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.safetensors"
        write(draft, trained, {})
        shipped = mlpconv.load(draft)
    seen = splits["train"] if asked.judged else splits["val"]
    before, after = (mlpconv.evaluate(each, seen) for each in (trained, shipped))
    if after.error > before.error + MOST_LOST:
        raise SystemExit(f"error {before.error:.2%} became {after.error:.2%} by folding and halving: not written")
    if asked.judged:
        figures = figures_of(asked.judged, trained)
    else:
        flipped = mlpconv.evaluate(shipped, seen, tta_flip=True).error
        figures = {"images": after.n, "error": after.error, "error_interval": list(after.error_interval)}
        figures |= {"error_with_tta_flip": flipped, "log_loss": after.log_loss, "error_before": before.error}
        figures |= {"train_images": trained.info["train_images"]}
    about = {"norm": "folded", "weights": "float16", "validation": figures}
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    write(asked.file, trained, {"shipped": about})
    parameters = sum(parameter.numel() for parameter in shipped.model.parameters())
    print(f"{asked.file}: {parameters:,} parameters, {asked.file.stat().st_size:,} bytes, error {figures['error']:.2%}")


def figures_of(file: Path, trained: Classifier) -> dict[str, Any]:
    """What is known of the same recipe and seed on a part of the images; SystemExit where it is another recipe."""
    info = mlpconv.load(file).info
    one, other = (dict(each["recipe"]) for each in (info, trained.info))
    differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    if differing != [APART]:
        raise SystemExit(f"{file} is of a recipe that differs in {', '.join(differing)}: only {APART} may")
    figures: dict[str, Any] = info["shipped"]["validation"]
    return figures


def write(path: Path, trained: Classifier, about: dict[str, Any]) -> None:
    """The classifier with its norms folded away, as float16."""
    plain = fold_norm(trained.model)
    mlpconv.save(
        path,
        plain,
        trained.preprocessing,
        classes=trained.classes,
        input_size=trained.input_size,
        info=trained.info | about,
        half=True,
    )


if __name__ == "__main__":
    main()
