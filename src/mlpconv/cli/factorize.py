"""`mlpconv surgery factorize`: load calibration and held-out images, print the report, and plot the curve."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter

from mlpconv.cli.options import DataDir, check_can_be_written, check_data_dir, check_from_one, check_model_file

if TYPE_CHECKING:
    from torch import Tensor

    from mlpconv.inference import Classifier
    from mlpconv.surgery import Surgery

    Pairs = list[tuple[Tensor, Tensor]]

__all__ = ["FactorizeOptions", "check_factorizable", "describe", "factorize_model"]

CALIBRATE, HELD_OUT = 1024, 1000
MAX_REASONS = 5


@Parameter(name="*")
@dataclass(frozen=True)
class FactorizeOptions:
    """The options of `factorize`."""

    budget: float | None = None
    """For factorize: the multiply-adds to keep, as a fraction (default 0.5) or a number."""
    of: Literal["macs", "error", "classes"] | None = None
    """What --budget limits: multiply-adds (default), lost output variance (error), or added error rate (classes)."""
    by: Literal["activations", "weights"] | None = None
    """How to choose low-rank directions: by activation statistics (default, much better) or by the weights alone."""
    fine_tune: int | None = None
    """Number of distillation steps from the original after factorization."""
    calibrate: int | None = None
    """Number of calibration images (default 1024)."""
    held_out: int | None = None
    """Number of held-out images of DATA to measure the error on (default 1000)."""
    plot: Path | None = None
    """Plot error against multiply-adds to this .png or .svg file, by activations and by weights."""
    data_dir: DataDir = None

    def given(self) -> list[str]:
        """Return the options that are set, as on the command line."""
        names = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return ["--" + {"data_dir": "data"}.get(name, name).replace("_", "-") for name in names]


def check_factorizable(
    model: str, options: FactorizeOptions, data: str | None, images: tuple[str, ...], out: Path | None
) -> Classifier:
    """Load the model file; raise UsageError, before any work, if it or the options cannot be used."""
    from mlpconv import inference
    from mlpconv.errors import UsageError
    from mlpconv.models import NIN

    check_data_dir(options.data_dir, data)
    check_can_be_written(plot=options.plot)
    check_model_file(model, out=out)
    numbers = {"fine_tune": options.fine_tune, "calibrate": options.calibrate, "held_out": options.held_out}
    check_from_one(**{name: number for name, number in numbers.items() if number is not None})
    if options.plot is not None and options.plot.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--plot is {str(options.plot)!r}; a file name ending in .png or .svg is accepted.")
    if options.of not in (None, "macs") and options.budget is None:
        raise UsageError(f"--of {options.of} needs --budget, the error that may be added, such as 0.02.")
    if (data is None) is (not images):
        raise UsageError(
            "factorize needs calibration images from one source: DATA with labels, as for `mlpconv evaluate`, or "
            "--images with image files."
        )
    if images and (options.held_out or options.data_dir or options.of == "classes"):
        raise UsageError("--held-out, --data and --of classes need DATA; with --images every fourth image is held out.")
    if ":" in model and not Path(model).exists():
        raise UsageError(
            f"factorize needs trained weights, and {model} has random ones: use mlpconv.surgery.factorize in Python."
        )
    classifier = inference.load(model)
    if out is not None and not isinstance(classifier.model, NIN):
        raise UsageError(
            "--out: a model file can hold a factorized Network In Network, but no other network, such as "
            f"{classifier.model.config.name}. In Python: mlpconv.surgery.factorize(mlpconv.load({model!r}).model, "
            "images).model"
        )
    if out is not None and any(block.ranks for block in classifier.model.config.blocks):  # type: ignore[attr-defined]
        raise UsageError("--out: the network is factorized already: factorize the original network instead.")
    return classifier


def factorize_model(
    classifier: Classifier, options: FactorizeOptions, data: str | None, images: tuple[str, ...], where: tuple[str, ...]
) -> tuple[Surgery, str]:
    """Factorize the model, and plot the curve with --plot; return the result and a sentence about the images."""
    from rich.console import Console

    from mlpconv import surgery

    calibration: Any
    held_out: Pairs | None = None
    if data is not None:
        calibration, held_out, about = _from_data(classifier, data, options)
    else:
        calibration = _from_files(classifier, images, options.calibrate or CALIBRATE)
        about = f"{len(calibration)} images: every fourth held out, the others for calibration."
    with Console(stderr=True).status("choosing ranks") as status:
        if not status.console.is_terminal:
            status.stop()
        result = surgery.factorize(
            classifier.model,
            calibration,
            0.5 if options.budget is None else options.budget,
            of=options.of or "macs",
            by=options.by or "activations",
            held_out=held_out,
            layers=where or None,
            fine_tune=options.fine_tune,
            curve=options.plot is not None,
        )
    if options.plot is not None:
        _draw(result, options.plot)
    return result, about


def _from_data(classifier: Classifier, data: str, options: FactorizeOptions) -> tuple[Pairs, Pairs | None, str]:
    """Return calibration images of the training split, held-out images or None, and a sentence about them."""
    from mlpconv.data.as_trained import open_as_trained
    from mlpconv.evaluation import align_labels
    from mlpconv.surgery.lowrank.batches import sample_split

    dataset = open_as_trained(data, options.data_dir, classifier)
    splits = {name: align_labels(split, dataset, classifier) for name, split in dataset.splits.items()}
    dataset.split("train")  # raises UsageError without a training split
    count, prepare = options.calibrate or CALIBRATE, classifier.preprocessing
    calibration = list(sample_split(splits["train"], count, prepare))
    name = next((name for name in ("val", "test") if name in splits), None)
    source = f"{sum(len(labels) for _, labels in calibration):,} training images of {data}"
    if name is None:
        about = f"{source}: every fourth held out, the others for calibration. The error on unseen images is higher."
        return calibration, None, about
    held_out = list(sample_split(splits[name], options.held_out or HELD_OUT, prepare))
    measured = sum(len(labels) for _, labels in held_out)
    return calibration, held_out, f"Calibrated on {source}, measured on {measured:,} of the {name} split."


def _from_files(classifier: Classifier, images: tuple[str, ...], limit: int) -> Tensor:
    """Return at most `limit` of the image files, evenly spaced over the list, preprocessed."""
    from mlpconv.cli.paths import expand

    files = expand(images)
    files = files[:: -(-len(files) // limit)]
    preprocessed: Tensor = classifier.preprocessing(classifier.pixels([str(file) for file in files]))
    return preprocessed


def _draw(result: Surgery, plot: Path) -> None:
    from mlpconv.plots import save_figure, tradeoff

    save_figure(tradeoff(result.report.to_dict()), plot)


def describe(result: Surgery, about: str, written: list[Path | None]) -> None:
    """Print the report, the ranks of each layer, and the names of the written files."""
    print(result.report)
    rows = [("layer", "channels", "ranks", "multiply-adds")]
    for layer in result.report.details["layers"]:
        channels = [str(number) for number in layer["channels"]]
        ranks = [str(rank) for rank in (layer["rank_in"], layer["rank_out"]) if rank]
        rows.append((layer["name"], "→".join(channels), "→".join(ranks), " → ".join(f"{n:,}" for n in layer["macs"])))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, channel, rank, macs in rows if len(rows) > 1 else []:
        print(f"  {name:<{widths[0]}}  {channel:>{widths[1]}}  {rank:>{widths[2]}}  {macs:>{widths[3]}}")
    left = list(result.report.details["left_alone"].items())
    for name, reason in left[:MAX_REASONS]:
        print(f"  left alone: {name} {reason}")
    if len(left) > MAX_REASONS:
        print(f"  left alone: {len(left) - MAX_REASONS} more (--json has all)")
    print(about)
    for file in filter(None, written):
        print(f"Written: {file}")
    sys.stdout.flush()
