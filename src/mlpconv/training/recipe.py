"""A recipe: everything that decides a training run, as one frozen value that reads from and writes to JSON.

Recipes are files in `mlpconv/recipes`: `NAME-DATA.json` holds what NAME means for one data set, `NAME.json` what it
means for any other. A file has two keys: `about` (what was measured, with the command and the machine) and `settings`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from mlpconv.errors import UsageError, did_you_mean

__all__ = ["Recipe", "find_recipe", "list_recipes", "parse_setting", "read_recipe"]

LONGEST_FILE = 1 << 20
MOST_EPOCHS = 100_000


def setting(default: Any, meaning: str, low: float | None = None, high: float | None = None) -> Any:
    """A field of a recipe with its help text and the range it accepts."""
    return field(default=default, metadata={"help": meaning, "low": low, "high": high})


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run; raises UsageError for an impossible one."""

    # the network
    model: str = setting("auto", "architecture name; auto chooses one for the data")
    width: float = setting(1.0, "multiplier on the hidden channels", 0.01, 16)
    activation: str | None = setting(None, "relu, maxout, ...; null keeps the network's own")
    norm: Literal["network", "none", "batch"] = setting("network", "normalisation after each convolution")
    pool_first: bool | None = setting(None, "pool before norm and activation; null keeps the network's own")
    pool2: Literal["max", "avg"] | None = setting(None, "kind of the second pooling of nin_cifar10 and its kin")
    dropout: float | None = setting(None, "dropout after the pools; null keeps the network's own", 0, 0.95)
    last_relu: bool | None = setting(None, "ReLU after the last 1x1; null keeps the network's own")
    head: Literal["gap", "fc", "fc+dropout"] = setting("gap", "what follows the last maps")
    init: Literal["paper", "he", "identity"] | None = setting(None, "initialisation; null keeps the network's own")
    whiten: bool = setting(False, "start the first layer with the whitening directions of the training patches")
    # the images
    preprocessing: tuple[str, ...] = setting(
        ("standardize",), "steps, in order: scale, mean, standardize, gcn, zca, lcn"
    )
    size: int | None = setting(None, "height and width of the images; null finds it out", 1, 4096)
    fit: Literal["auto", "crop", "pad", "stretch"] = setting(
        "auto",
        "what brings images to that size: crop keeps the centre, pad and stretch all; auto: by proportions",
    )
    val_fraction: float = setting(
        0.2, "share of the training images held out where there is no validation split", 0, 0.9
    )
    crop: int = setting(0, "random crops after padding this many pixels", 0, 512)
    crop_mode: Literal["zero", "reflect"] = setting("reflect", "what the padding holds")
    flip: Literal["none", "random", "alternate", "auto"] = setting(
        "none", "horizontal flips; alternate turns each image every other epoch; auto: random for colour, none for grey"
    )
    cutout: int = setting(0, "side of a square set to zero at a random place, in pixels", 0, 512)
    mixup: float = setting(0.0, "alpha of mixup; 0 is off", 0, 10)
    sizes: tuple[int, ...] = setting((), "small-to-large images: the side for each equal part of the steps")
    # the optimiser
    epochs: int = setting(20, "passes over the training images", 1, MOST_EPOCHS)
    min_steps: int = setting(
        0, "at least this many steps: small data get more epochs, unless you set epochs", 0, 10_000_000
    )
    batch_size: int = setting(128, "images a step", 1, 65_536)
    optimizer: Literal["sgd", "adamw", "muon"] = setting("sgd", "the rule of a step")
    lr: float = setting(0.05, "peak learning rate (muon: step as a share of a weight's norm)", 0, 1e6)
    momentum: float = setting(0.9, "momentum, or AdamW's first beta", 0, 0.9999)
    nesterov: bool = setting(True, "Nesterov momentum")
    weight_decay: float = setting(5e-4, "decay of the weights, never of biases and norms", 0, 100)
    bias_lr: float = setting(1.0, "learning rate of biases and norms, as a multiple", 0, 1000)
    last_lr: float = setting(1.0, "learning rate of the last layer, as a multiple", 0, 1000)
    schedule: Literal["constant", "linear", "cosine", "onecycle", "steps"] = setting("onecycle", "course of the rate")
    warmup: float = setting(0.0, "share of the steps in which the rate rises from zero", 0, 0.9)
    milestones: tuple[int, ...] = setting((), "epochs after which schedule=steps divides the rate by ten")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", 0, 0.9)
    freeze: tuple[float, ...] = setting(
        (), "shares of the run after which the first convolution, then its whole mlpconv layer, learn no more"
    )
    clip: float | None = setting(None, "largest norm of the whole gradient; null is off", 1e-6, 1e6)
    ema: float = setting(0.0, "decay of the averaged weights that are judged and kept; 0 is off", 0, 0.99999)
    ema_every: int = setting(1, "steps between two updates of the average", 1, 10_000)
    # the run
    seed: int = setting(0, "decides order, initialisation, augmentation and dropout", 0, 2**31 - 1)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "number format; auto: bf16 where this machine is clearly faster in it"
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where to train")
    workers: int = setting(0, "threads that prepare batches ahead; never changes a result", 0, 64)
    eval_every: int = setting(1, "epochs between two validations", 1, MOST_EPOCHS)
    checkpoint_minutes: float = setting(5.0, "longest time between two checkpoints inside an epoch", 0, 1e6)
    on_collapse: Literal["stop", "repair"] = setting(
        "stop", "what to do when the loss sits at ln(classes) with dead maps"
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = coerce(item.name, getattr(self, item.name), hints[item.name])
            check_range(item.name, value, item.metadata["low"], item.metadata["high"])
            object.__setattr__(self, item.name, value)
        check_together(self)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def with_settings(self, /, **settings: Any) -> Recipe:
        """A copy with some settings changed; raises UsageError for an unknown key, naming the nearest."""
        known = {item.name for item in dataclasses.fields(self)}
        for key in settings:
            if key not in known:
                raise UsageError(f"unknown recipe setting {shown(key)}: {did_you_mean(key[:80], known)}")
        return dataclasses.replace(self, **settings)


def coerce(name: str, value: Any, hint: Any) -> Any:
    """The value as the type the field declares; raises UsageError where it is of another kind."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return coerce(name, value, next(a for a in arguments if a is not types.NoneType))
    if origin is Literal:
        if value in arguments:
            return value
        near = did_you_mean(value[:80] if isinstance(value, str) else "", arguments)
        raise UsageError(f"{name}={shown(value)} is not accepted: {near}")
    if origin is tuple:
        values = value.split(",") if isinstance(value, str) else value
        if isinstance(values, int) and not isinstance(values, bool):  # --set milestones=200
            values = [values]
        if not isinstance(values, (list, tuple)):
            example = {int: "24,28,32", float: "0.3,0.75", str: "gcn,zca"}[arguments[0]]
            raise UsageError(f"{name}={shown(value)} is not accepted: give a list, like {name}={example}.")
        return tuple(coerce(name, from_text(item), arguments[0]) for item in values)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 1000 else math.inf  # what is too large for a float is out of any range
    if isinstance(value, hint) and not (hint is not bool and isinstance(value, bool)):
        return value
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    raise UsageError(f"{name}={shown(value)} is not accepted: give {kinds[hint]}.")


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    if value is None or low is None or high is None:
        return
    if not low <= value <= high:  # also refuses NaN
        raise UsageError(f"{name}={shown(value)} is out of range: accepted are {low} to {high}.")


def check_together(recipe: Recipe) -> None:
    """Refuse settings that are each possible but not with one another."""
    if recipe.lr == 0:
        raise UsageError("lr=0 would train nothing: give a learning rate above 0.")
    if recipe.schedule == "steps" and not recipe.milestones:
        raise UsageError(
            "schedule=steps needs milestones, the epochs after which the rate drops, like milestones=200,230."
        )
    if recipe.milestones and recipe.schedule != "steps":
        raise UsageError(f"milestones are for schedule=steps, not for schedule={recipe.schedule}: drop one of the two.")
    if any(epoch < 1 for epoch in recipe.milestones):
        raise UsageError(f"milestones={shown(recipe.milestones)} is not accepted: each is a number of epochs, from 1.")
    if any(not 1 <= side <= 4096 for side in recipe.sizes):
        raise UsageError(f"sizes={shown(recipe.sizes)} is not accepted: each is a side in pixels, 1 to 4096.")
    rising = list(recipe.freeze) == sorted(recipe.freeze)
    if len(recipe.freeze) > 2 or not rising or any(not 0 <= share <= 1 for share in recipe.freeze):
        raise UsageError(
            f"freeze={shown(recipe.freeze)} is not accepted: give one or two shares of the run from 0 to 1, rising, "
            "like freeze=0.3,0.75."
        )
    if recipe.sizes and "zca" in recipe.preprocessing:
        raise UsageError(
            "sizes and zca exclude one another: whitening is fitted to one image size. Drop one of the two."
        )


def from_text(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if re.fullmatch(r"[-+]?\d*\.\d*", text) and text.strip("-+."):  # .05 and 5., which JSON does not know
            return float(text)
        return {"none": None, "None": None, "True": True, "False": False}.get(text, text)


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `key=value` as given on the command line; raises UsageError where there is no `=`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"the setting {shown(text)} is not accepted: give key=value, like lr=0.05.")
    key = key.strip().replace("-", "_")
    # A Literal such as norm=none means the word, not null.
    return key, value.strip() if value.strip() == "none" and key in ("norm", "flip") else from_text(value.strip())


def list_recipes() -> dict[str, list[str]]:
    """The names of the recipes that ship, each with the data sets it has a file of its own for."""
    names: dict[str, list[str]] = {}
    for title in shipped():
        name, _, data = title.partition("-")
        names.setdefault(name, []).extend([data] if data else [])
    return names


def shipped() -> dict[str, Traversable]:
    """The files of recipes in the package, by name without the ending, in alphabetical order."""
    files = [file for file in resources.files("mlpconv.recipes").iterdir() if file.name.endswith(".json")]
    return {file.name.removesuffix(".json"): file for file in sorted(files, key=lambda file: file.name)}


def find_recipe(name: str | Path, data: str) -> Recipe:
    """The recipe of that name for a data set, or the one in a file; raises UsageError with the nearest name."""
    if str(name).endswith(".json"):
        return read_recipe(Path(name))
    files = shipped()
    for title in (f"{name}-{data}", str(name)):
        if title in files:
            return parse_recipe(files[title].read_bytes(), f"{title}.json")
    names = list_recipes()
    if str(name) in names:
        raise UsageError(
            f"recipe {str(name)!r} is for {', '.join(names[str(name)])}, not for {data!r}: choose another recipe."
        )
    near = did_you_mean(str(name)[:80], names)
    raise UsageError(f"unknown recipe {shown(str(name))}: {near} A path that ends in .json is read as a file.")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file of the user's; raises UsageError where it is missing, too long or not a recipe."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file: give a recipe's name or the path of a JSON file.")
        if path.stat().st_size > LONGEST_FILE:
            raise UsageError(f"{path} has {path.stat().st_size:,} bytes: a recipe has at most {LONGEST_FILE:,}.")
        return parse_recipe(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def parse_recipe(content: bytes, name: str) -> Recipe:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is not JSON ({type(error).__name__}): a recipe is an object with the key 'settings'."
        ) from error
    if not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        raise UsageError(
            f"{name} is not a recipe: give a JSON object with the keys 'settings' and, if you like, 'about'."
        )
    for key in value:
        if key not in ("about", "settings"):
            raise UsageError(f"{name} has an unknown key {shown(key)}: {did_you_mean(key[:80], ('about', 'settings'))}")
    return Recipe().with_settings(**value["settings"])
