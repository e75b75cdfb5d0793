"""`mlpconv train`: train a network, and write a run folder with model file and report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from json import dumps
from os import environ
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import DataDir, Switch, check_data_dir
from mlpconv.cli.start_options import StartOptions
from mlpconv.errors import UsageError
from mlpconv.files import MODEL_FILE
from mlpconv.text import Wording, shell_path, shell_word, worded

if TYPE_CHECKING:
    from mlpconv.fitting import Run

__all__ = ["train"]

NAMES = (
    "recipe",
    "epochs",
    "out",
    "resume",
    "precision",
    "device",
    "on_collapse",
    "tune",
    "balance",
    "calibrate",
    "minutes",
    "add_classes",
    "weights",
    "teacher",
    "cache_gb",
)
Memory = Annotated[
    str | None, Parameter(help="Memory for the images of tar shards, such as 4G (default: a quarter of what is free).")
]
FLAGS = {name: f"--{name.replace('_', '-')}" for name in NAMES} | {"source": "--from"}

OnCollapse = Annotated[
    str | None, Parameter(help="Action when training collapses at loss ln(classes): stop or repair.")
]


def train(
    data: str,
    /,
    *,
    recipe: str | None = None,
    epochs: int | None = None,
    out: Path | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True)] = (),
    resume: Switch = False,
    data_dir: DataDir = None,
    precision: str | None = None,
    device: str | None = None,
    on_collapse: OnCollapse = None,
    start: StartOptions | None = None,
    memory: Memory = None,
    json: Switch = False,
) -> None:
    """Train a network on a named data set or a folder with one folder of images per class; write a run folder.

    A folder of photographs starts from pretrained weights, everything else from random weights (see --from).

    Parameters
    ----------
    data
        digits, mnist, fashion_mnist, cifar10, cifar100, svhn; a folder (of class folders, or train/ and val/); or
        tar shards, such as shards/*.tar.
    recipe
        Training recipe: fast (the default), best, paper, finetune, a JSON file, or best-of:FOLDER of a search.
    epochs
        Number of epochs; overrides epochs and min_steps of the recipe.
    out
        Run folder; default runs/NAME-001, numbered. A folder with content is refused without --resume.
    set_
        Override settings of the recipe: --set lr=0.05 batch_size=64. An unknown name lists all settings;
        docs/training.md explains them.
    resume
        Resume the run in --out, or the newest run of this data set; start a new run if there is none.
    precision
        Compute dtype: auto (bf16 if it is clearly faster on this machine, measured once and cached), fp32 or bf16.
    device
        Device: auto, cpu or cuda.
    json
        Print one JSON object per epoch, and one at the end.
    """
    from mlpconv.cli.training_output import make_progress
    from mlpconv.fitting import fit

    start_time, options = perf_counter(), start or StartOptions()
    settings = merge_settings(
        set_, epochs=epochs, precision=precision, device=device, on_collapse=on_collapse, **options.settings()
    )
    check_data_dir(data_dir, data)
    settings |= {"out": out, "resume": resume, "data_root": data_dir, **options.arguments()}
    with worded(CommandLine(data, data_dir)), limited(memory):
        run = fit(data, recipe, progress=make_progress(json), **settings)
    if environ.get("RANK", "0") == "0":  # torchrun: rank 0 prints
        print_json(run) if json else print_summary(run, perf_counter() - start_time)


def limited(memory: str | None) -> AbstractContextManager[None]:
    """Limit the memory of images in tar shards to a size such as 4G; raises UsageError for anything else."""
    from mlpconv.data.shards import memory_limit

    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)\s*([kmgt]?)b?", (memory or "0").strip().lower())
    if match is None:
        raise UsageError(f"--memory is {memory!r}; expected a size such as 500M or 4G.")
    return memory_limit(None if memory is None else int(float(match[1]) * 1000 ** " kmgt".index(match[2] or " ")))


def merge_settings(pairs: tuple[str, ...], **flags: object) -> dict[str, Any]:
    """Merge the settings of --set and of the flags; raises UsageError if two differ."""
    from mlpconv.training.recipe import parse_setting

    settings: dict[str, Any] = {}
    for name, value in map(parse_setting, pairs):
        if settings.setdefault(name, value) != value:
            raise UsageError(f"--set {name}={settings[name]} and --set {name}={value} differ: give only one of them.")
    for name, value in flags.items():
        if value is not None and settings.setdefault(name, value) != value:
            raise UsageError(f"{FLAGS[name]} {value} and --set {name}={settings[name]} differ: give only one of them.")
    return settings


def hint(option: str, words: Sequence[str]) -> str | None:
    """Return how to pass a recipe setting if the unknown `option` of the command `words` resembles one, else None."""
    from dataclasses import fields
    from difflib import get_close_matches

    from mlpconv.training.recipe import Recipe

    name = option.lstrip("-").replace("-", "_")
    settings = [item.name for item in fields(Recipe) if item.name not in FLAGS]
    matches = get_close_matches(name, settings, n=1, cutoff=0.8)
    if not matches:
        return None
    position = next((i for i, word in enumerate(words) if word.partition("=")[0] == option), len(words))
    value = words[position].partition("=")[2] if position < len(words) else ""
    if not value and position + 1 < len(words) and not words[position + 1].startswith("--"):
        value = words[position + 1]
    return f"{matches[0]} is a setting of the recipe: --set {matches[0]}={value or 'VALUE'}"


class CommandLine(Wording):
    """Write messages with the options of `mlpconv train`, and the command that resumes this run."""

    def __init__(self, data: str, data_dir: Path | None) -> None:
        self.data, self.data_dir = data, data_dir

    def option(self, name: str, value: object) -> str:
        if value is True and name in FLAGS:
            return FLAGS[name]
        if name not in FLAGS:
            return f"--set {shell_word(f'{name}={value if isinstance(value, str) else dumps(value)}')}"
        return f"{FLAGS[name]} {shell_path(value) if isinstance(value, str) else dumps(value)}"

    def resume_hint(self, folder: object) -> str:
        where = f" --data {shell_path(self.data_dir)}" if self.data_dir else ""
        return f"To resume: mlpconv train {shell_path(self.data)}{where} --out {shell_path(str(folder))} --resume"


def print_summary(run: Run, seconds: float) -> None:
    """Print the accuracy, that of the report if there is one, the time of the command and the next commands."""
    from rich.console import Console
    from rich.markup import escape

    kept = run.classifier.info["metrics"]
    console = Console(highlight=False, soft_wrap=True)
    if kept["val_accuracy"] is None:
        console.print(f"training accuracy [bold]{kept['train_accuracy']:.2%}[/]; there is no validation split")
    else:
        accuracy = kept["val_accuracy"] if run.evaluation is None else 1 - run.evaluation.error
        console.print(f"validation accuracy [bold]{accuracy:.2%}[/]{kept_epoch(run, accuracy)}")
    if (teacher := run.classifier.info.get("teacher")) and teacher["val_accuracy"] is not None:
        console.print(f"teacher's validation accuracy {teacher['val_accuracy']:.2%}")
    folder = escape(shell_path(run.folder))
    console.print(f"{seconds:.0f} s; results in [bold]{folder}[/]")
    console.print(f"  report    {escape(shell_path(run.folder / 'report.html'))}")
    console.print(f"  predict   mlpconv predict {folder} IMAGE...")
    console.print(f"  maps      mlpconv maps {folder} IMAGE...")


def kept_epoch(run: Run, accuracy: float) -> str:
    """Return which epoch was kept, in brackets, and why if another has more than `accuracy`; nothing without epochs.

    `accuracy` is the one that stands before the brackets: that of the report may differ from the epoch's, which was
    computed in the precision of the training. Both are compared as they are printed.
    """
    kept, last = run.classifier.info["metrics"], run.history[-1]["epoch"]
    if not last:
        return ""
    best = max((row for row in run.history if row["val_accuracy"] is not None), key=lambda row: row["val_accuracy"])
    text, higher = f"epoch {kept['epoch']} of {last}", round(best["val_accuracy"], 4) > round(accuracy, 4)
    if higher and best["val_accuracy"] > kept["val_accuracy"]:
        text += f"; {best['val_accuracy']:.2%} in epoch {best['epoch']} is within one standard error"
    return f" ({text})"


def print_json(run: Run) -> None:
    """Print the result of the run as one line of JSON."""
    info = run.classifier.info
    line = {"folder": str(run.folder), "model": str(run.folder / MODEL_FILE), "metrics": info["metrics"]}
    print(dumps(line | ({"teacher": info["teacher"]} if "teacher" in info else {})))
