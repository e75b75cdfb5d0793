"""`mlpconv train`: from images to a model file and its report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import Switch
from mlpconv.errors import Interrupted

if TYPE_CHECKING:
    from mlpconv.run import Run

__all__ = ["train"]


def train(
    data: str,
    /,
    *,
    recipe: str | None = None,
    out: Path | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True)] = (),
    resume: Switch = False,
    data_dir: Annotated[Path | None, Parameter(name="--data")] = None,
    precision: str | None = None,
    device: str | None = None,
    on_collapse: str | None = None,
    json: Switch = False,
) -> None:
    """Train a network on a named data set, or on a folder with one folder of images a class.

    Everything is written to one run folder: the model file, metrics.csv, checkpoints, and report.html that shows them.

    Parameters
    ----------
    data
        digits, mnist, fashion_mnist, cifar10, cifar100, svhn, or a folder (class folders, or train/ and val/ of them).
    recipe
        How to train: fast (the default), best, paper, or a JSON file.
    out
        The run folder; by default runs/NAME-001, counted up. One that has content is refused without --resume.
    set_
        Change settings of the recipe: --set lr=0.05 epochs=40. A wrong name is answered with all that there are;
        docs/training.md explains them.
    resume
        Go on with the run in --out, or the newest one of this data, from its last checkpoint.
    data_dir
        The folder that holds the files of a named data set, where they are not in the cache.
    precision
        auto (both are timed on the first batch), fp32 or bf16.
    device
        auto, cpu or cuda.
    on_collapse
        What to do when the loss sits at ln(classes) with dead maps: stop or repair.
    json
        Print one JSON object an epoch, and one at the end, for machines.
    """
    from mlpconv.cli.progress import watch
    from mlpconv.run import fit
    from mlpconv.training.recipe import parse_setting

    settings: dict[str, Any] = dict(parse_setting(text) for text in set_)
    flags = {"precision": precision, "device": device, "on_collapse": on_collapse}
    settings |= {key: value for key, value in flags.items() if value is not None}
    progress = watch(json)
    try:
        run = fit(data, recipe, out=out, resume=resume, data_root=data_dir, progress=progress, **settings)
    except Interrupted as stop:
        command = going_on(data, data_dir, out or stop.folder)
        raise Interrupted(f"{stop} To go on: {command}", stop.signal_number, stop.folder) from None
    if json:
        say_json(run)
    else:
        say(run)


def going_on(data: str, data_dir: Path | None, folder: Path | None) -> str:
    """The command that goes on with an interrupted run."""
    words = ["mlpconv", "train", data]
    words += ["--data", str(data_dir)] if data_dir else []
    words += ["--out", str(folder)] if folder else []
    return shlex.join([*words, "--resume"])


def say(run: Run) -> None:
    """Tell a person where everything is and what to do next."""
    from rich.console import Console
    from rich.markup import escape

    last, best = run.history[-1], run.classifier.info["metrics"]
    console = Console(highlight=False, soft_wrap=True)
    if best["val_accuracy"] is None:
        console.print(
            f"[bold]{best['train_accuracy']:.2%}[/] right on the training images; there is no validation part"
        )
    else:
        which = f"epoch {best['epoch']}, the best of {last['epoch']}"
        console.print(f"[bold]{best['val_accuracy']:.2%}[/] right on validation images ({which})")
    folder = escape(shlex.quote(str(run.folder)))
    console.print(f"{last['seconds']:.0f} s; everything is in [bold]{folder}[/]")
    console.print(f"  open      {escape(shlex.quote(str(run.folder / 'report.html')))}")
    console.print(f"  predict   mlpconv predict {folder} IMAGE...")
    console.print(f"  look      mlpconv maps {folder} IMAGE...")


def say_json(run: Run) -> None:
    """Print the end of the run as one line of JSON."""
    import json

    best = run.classifier.info["metrics"]
    print(json.dumps({"folder": str(run.folder), "model": str(run.folder / "model.safetensors"), "best": best}))
