"""`mlpconv surgery factorize`: the images that it needs, what it says of the result, and the picture of its curve."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mlpconv.cli.options import check_can_be_written, check_from_one

if TYPE_CHECKING:
    from torch import Tensor

    from mlpconv.data import Split
    from mlpconv.inference import Classifier
    from mlpconv.surgery import Surgery

    Pairs = list[tuple[Tensor, Tensor]]

__all__ = ["FactorizeOptions", "check_factorizable", "describe", "factorize_model", "prepare_images"]

CALIBRATE, HELD_OUT = 1024, 1000
STEP = 128
"""Images prepared at a time."""
MOST_REASONS = 5


@Parameter(name="*")
@dataclass(frozen=True)
class FactorizeOptions:
    """What only `factorize` is asked."""

    budget: float | None = None
    """For factorize: how much may be left of the multiply-adds, as a share (0.5 if not given) or a number."""
    of: Literal["macs", "error", "classes"] | None = None
    """Or --budget is what may be lost: as a share of the outputs' variance (error) or of all images (classes)."""
    by: Literal["activations", "weights"] | None = None
    """By what a layer's directions are chosen: activations (the default, and much better) or weights."""
    fine_tune: int | None = None
    """Then train so many steps towards what the original says."""
    calibrate: int | None = None
    """Images to choose and fit the ranks on; 1024 if not given."""
    held_out: int | None = None
    """Images of DATA to measure on, which training held out; 1000 if not given."""
    plot: Path | None = None
    """Draw error against multiply-adds to this .png or .svg file, by activations and by weights."""
    data_dir: Annotated[Path | None, Parameter(name="--data")] = None
    """The folder that holds the files of a named data set, where they are not in the cache."""

    def given(self) -> list[str]:
        """The options that were named, as on the command line."""
        names = {"data_dir": "data"}
        found = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        return ["--" + names.get(name, name).replace("_", "-") for name in found]


def check_factorizable(
    model: str, asked: FactorizeOptions, data: str | None, images: tuple[str, ...], out: Path | None
) -> Classifier:
    """The model file, where what is asked for makes sense of it; UsageError before any work otherwise."""
    from mlpconv import inference
    from mlpconv.errors import UsageError
    from mlpconv.models import NIN

    check_can_be_written(plot=asked.plot, out=out)
    numbers = {"fine_tune": asked.fine_tune, "calibrate": asked.calibrate, "held_out": asked.held_out}
    check_from_one(**{name: number for name, number in numbers.items() if number is not None})
    if asked.plot is not None and asked.plot.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--plot is {str(asked.plot)!r}; a name that ends in .png or .svg is accepted.")
    if asked.of not in (None, "macs") and asked.budget is None:
        raise UsageError(f"--of {asked.of} needs --budget: how much may be lost, such as 0.02.")
    if (data is None) is (not images):
        raise UsageError(
            "factorize needs images to choose ranks on, and one kind of them: DATA with labels, as `mlpconv evaluate` "
            "takes it, or image files with --images."
        )
    if images and (asked.held_out or asked.data_dir or asked.of == "classes"):
        raise UsageError("--held-out, --data and --of classes go with DATA; of --images every fourth is held out.")
    if ":" in model and not Path(model).exists():
        raise UsageError(f"factorize needs trained weights and {model} has random ones: use mlpconv.surgery in Python.")
    classifier = inference.load(model)
    if out is not None and not isinstance(classifier.model, NIN):
        raise UsageError(
            "--out: a model file can hold what factorize makes of a Network In Network, not of "
            f"{classifier.model.config.name}. In Python: mlpconv.surgery.factorize(mlpconv.load({model!r}).model, "
            "images).model"
        )
    if out is not None and any(block.ranks for block in classifier.model.config.blocks):  # type: ignore[attr-defined]
        raise UsageError("--out: the network has lower ranks already: factorize the one that it was made of instead.")
    return classifier


def factorize_model(
    classifier: Classifier, asked: FactorizeOptions, data: str | None, images: tuple[str, ...], where: tuple[str, ...]
) -> tuple[Surgery, str]:
    """The result, and a sentence about the images; with a curve where somebody will look at it."""
    from rich.console import Console

    from mlpconv import surgery

    fit: Any
    if data is not None:
        fit, held_out, about = _from_data(classifier, data, asked)
    else:
        fit, held_out, about = _from_files(classifier, images, asked.calibrate or CALIBRATE), None, ""
        about = f"{len(fit)} images: every fourth is measured on, the others are fitted to."
    with Console(stderr=True).status("choosing ranks") as status:
        if not status.console.is_terminal:
            status.stop()
        result = surgery.factorize(
            classifier.model,
            fit,
            0.5 if asked.budget is None else asked.budget,
            of=asked.of or "macs",
            by=asked.by or "activations",
            held_out=held_out,
            layers=where or None,
            fine_tune=asked.fine_tune,
            curve=asked.plot is not None,
        )
    if asked.plot is not None:
        _draw(result, asked.plot)
    return result, about


def _from_data(classifier: Classifier, data: str, asked: FactorizeOptions) -> tuple[Pairs, Pairs | None, str]:
    """Training images to fit on, and images that training held out to measure on."""
    from mlpconv.data.as_trained import open_as_trained
    from mlpconv.evaluation import align_labels

    dataset = open_as_trained(data, asked.data_dir, classifier)
    parts = {name: align_labels(part, dataset.classes, classifier) for name, part in dataset.splits.items()}
    dataset.split("train")  # where there is none, it says so
    fit = list(prepare_images(classifier, parts["train"], asked.calibrate or CALIBRATE))
    count = sum(len(labels) for _, labels in fit)
    name = next((name for name in ("val", "test") if name in parts), None)
    if name is None:
        about = f"{count:,} training images of {data}: every fourth is measured on, the others fitted to."
        return fit, None, f"{about} On images that the network was not trained on, it is worse."
    held_out = list(prepare_images(classifier, parts[name], asked.held_out or HELD_OUT))
    measured = sum(len(labels) for _, labels in held_out)
    about = f"Fitted to {count:,} training images of {data}, measured on {measured:,} of {name}."
    return fit, held_out, about


def prepare_images(classifier: Classifier, split: Split, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some images of a split, drawn from a fixed seed, as the network takes them, with their labels."""
    import numpy as np
    import torch

    order = np.sort(np.random.default_rng(0).permutation(len(split))[:most])
    for start in range(0, len(order), STEP):
        some = order[start : start + STEP]
        pixels = torch.from_numpy(np.ascontiguousarray(split.images[some]))
        yield classifier.preprocessing(pixels), torch.from_numpy(np.asarray(split.labels[some], dtype=np.int64))


def _from_files(classifier: Classifier, images: tuple[str, ...], most: int) -> Tensor:
    """At most so many of the image files, from all over the list, as the network takes them."""
    from mlpconv.cli.paths import expand

    files = expand(images)
    files = files[:: -(-len(files) // most)]
    prepare_images: Tensor = classifier.preprocessing(classifier.pixels([str(file) for file in files]))
    return prepare_images


def _draw(result: Surgery, plot: Path) -> None:
    from mlpconv.plots import save_figure, tradeoff

    save_figure(tradeoff(result.report.to_dict()), plot)


def describe(result: Surgery, about: str, printed: list[Path | None]) -> None:
    """Print the report, the ranks, and what was written."""
    print(result.report)
    rows = [("layer", "channels", "through", "multiply-adds")]
    for layer in result.report.details["layers"]:
        channels = [str(number) for number in layer["channels"]]
        through = [str(rank) for rank in (layer["rank_in"], layer["rank_out"]) if rank]
        rows.append((layer["name"], "→".join(channels), "→".join(through), " → ".join(f"{n:,}" for n in layer["macs"])))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for a, b, c, d in rows if len(rows) > 1 else []:
        print(f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}")
    left = list(result.report.details["left_alone"].items())
    for name, reason in left[:MOST_REASONS]:
        print(f"  left alone: {name} {reason}")
    if len(left) > MOST_REASONS:
        print(f"  left alone: {len(left) - MOST_REASONS} more (--json has all)")
    print(about)
    for file in filter(None, printed):
        print(f"Written: {file}")
    sys.stdout.flush()
