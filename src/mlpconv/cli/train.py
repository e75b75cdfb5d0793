"""`mlpconv train`: from images to a model file and its report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import Switch
from mlpconv.errors import UsageError
from mlpconv.text import Wording, worded

if TYPE_CHECKING:
    from mlpconv.fitting import Run

__all__ = ["train"]

FLAGS = {
    name: f"--{name.replace('_', '-')}" for name in ("epochs", "out", "resume", "precision", "device", "on_collapse")
}


def train(
    data: str,
    /,
    *,
    recipe: str | None = None,
    epochs: int | None = None,
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
    epochs
        Passes over the training images: that many, whatever the recipe says of steps.
    out
        The run folder; by default runs/NAME-001, counted up. One that has content is refused without --resume.
    set_
        Change settings of the recipe: --set lr=0.05 batch_size=64. A wrong name is answered with all that there are;
        docs/training.md explains them.
    resume
        Go on with the run in --out, or the newest one of this data, from its last checkpoint; start it where there
        is none yet.
    data_dir
        The folder that holds the files of a named data set, where they are not in the cache.
    precision
        auto (bf16 where this machine is clearly faster in it, which is measured once and remembered), fp32 or bf16.
    device
        auto, cpu or cuda.
    on_collapse
        What to do when the loss sits at ln(classes) with dead maps: stop or repair.
    json
        Print one JSON object an epoch, and one at the end, for machines.
    """
    from mlpconv.cli.training_output import watch
    from mlpconv.fitting import fit

    settings = gathered(set_, epochs=epochs, precision=precision, device=device, on_collapse=on_collapse)
    with worded(CommandLine(data, data_dir)):
        run = fit(data, recipe, out=out, resume=resume, data_root=data_dir, progress=watch(json), **settings)
    if json:
        say_json(run)
    else:
        say(run)


def gathered(pairs: tuple[str, ...], **flags: object) -> dict[str, Any]:
    """The settings of --set and of the flags that were given; UsageError where the two differ."""
    from mlpconv.training.recipe import parse_setting

    settings: dict[str, Any] = dict(parse_setting(text) for text in pairs)
    for name, value in flags.items():
        if value is not None and settings.setdefault(name, value) != value:
            raise UsageError(f"{FLAGS[name]} {value} and --set {name}={settings[name]} differ: give one of the two.")
    return settings


def hint(option: str, words: Sequence[str]) -> str | None:
    """Say how a setting of a recipe is given, where an unknown `option` of the command `words` is one, or nearly."""
    from dataclasses import fields
    from difflib import get_close_matches

    from mlpconv.training.recipe import Recipe

    name = option.lstrip("-").replace("-", "_")
    settings = [item.name for item in fields(Recipe) if item.name not in FLAGS]
    near = get_close_matches(name, settings, n=1, cutoff=0.8)
    if not near:
        return None
    place = next((i for i, word in enumerate(words) if word.partition("=")[0] == option), len(words))
    value = words[place].partition("=")[2] if place < len(words) else ""
    if not value and place + 1 < len(words) and not words[place + 1].startswith("--"):
        value = words[place + 1]
    return f"{near[0]} is a setting of the recipe: --set {near[0]}={value or 'VALUE'}"


class CommandLine(Wording):
    """Messages name the options of `mlpconv train`, and the command that resumes this run."""

    def __init__(self, data: str, data_dir: Path | None) -> None:
        self.data, self.data_dir = data, data_dir

    def option(self, name: str, value: object) -> str:
        if value is True and name in FLAGS:
            return FLAGS[name]
        text = value if isinstance(value, str) else dumps(value)
        return f"{FLAGS[name]} {text}" if name in FLAGS else f"--set {name}={text}"

    def resume_hint(self, folder: object) -> str:
        words = ["mlpconv", "train", self.data]
        words += ["--data", str(self.data_dir)] if self.data_dir else []
        return f"To go on: {shlex.join([*words, '--out', str(folder), '--resume'])}"


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
    best = run.classifier.info["metrics"]
    print(dumps({"folder": str(run.folder), "model": str(run.folder / "model.safetensors"), "best": best}))
