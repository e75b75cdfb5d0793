"""Make the weights that ship with the package out of a finished run: norms folded away, halved, judged again.

    python benchmarks/ship.py runs/cifar10-001 nin_cifar10

Writes src/mlpconv/weights/NAME.safetensors. Batch norm is worked into the convolutions, so that what ships has the
published network's parameters; weights are stored as float16. The file is judged as users will load it, on the images
that training held out, and is not written where that costs more than 0.05 points of accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import mlpconv
from mlpconv.bundle import Classifier
from mlpconv.cli.evaluate import open_as_trained
from mlpconv.models.folding import fold_norm

WEIGHTS = Path(__file__).resolve().parents[1] / "src" / "mlpconv" / "weights"
MOST_LOST = 0.0005


def main() -> None:
    """Fold, halve, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--root", type=Path, help="where the data lie, if not in the cache or $MLPCONV_DATA")
    asked = parser.parse_args()
    trained = mlpconv.load(asked.run)
    split = open_as_trained(trained.info["data"], asked.root, trained).split("val")
    before = mlpconv.evaluate(trained, split)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.safetensors"
        write(draft, trained, {})
        shipped = mlpconv.load(draft)
        after, flipped = (mlpconv.evaluate(shipped, split, tta_flip=flip) for flip in (False, True))
    if after.error > before.error + MOST_LOST:
        raise SystemExit(f"error {before.error:.2%} became {after.error:.2%} by folding and halving: not written")
    figures = {"images": after.n, "error": after.error, "error_interval": list(after.error_interval)}
    figures |= {"error_with_tta_flip": flipped.error, "log_loss": after.log_loss, "error_before": before.error}
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{asked.name}.safetensors"
    write(path, trained, {"shipped": {"norm": "folded", "weights": "float16", "validation": figures}})
    parameters = sum(parameter.numel() for parameter in shipped.model.parameters())
    print(f"{path.name}: {parameters:,} parameters, {path.stat().st_size:,} bytes, error {after.error:.2%}")


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
