"""Training recipes: every setting of a run as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.training.combinations import check_combination

__all__ = ["Recipe", "parse_setting", "shorten"]

MAX_EPOCHS = 100_000


def setting(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    """Declare a recipe setting with its default, help text and accepted range."""
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run; raises UsageError for an invalid value or settings that exclude one another."""

    # the initial weights
    source: str = setting("scratch", "initial weights: scratch (random), a shipped network, a model file or timm:NAME")
    weights: str | None = setting(None, "safetensors file with the weights of timm:NAME; null downloads them")
    tune: Literal["head", "last", "all"] = setting(
        "all", "trained layers: head (the classifier, fitted without epochs), last (the last third) or all"
    )
    add_classes: bool = setting(False, "keep the source's classes and their weights, and fit only new classes")
    balance: bool = setting(False, "give all classes the same weight: draw them equally often, or weigh their images")
    calibrate: bool = setting(False, "fit a temperature on the validation images at the end: calibrated probabilities")
    # the teacher
    teacher: str | None = setting(None, "trained network to learn from: a model file, run folder or shipped network")
    teacher_weight: float = setting(
        0.9, "weight of the teacher's soft targets in the loss; the labels have the rest", 0, 1
    )
    teacher_temperature: float = setting(8.0, "temperature that softens teacher and network in the loss", 0.1, 100)
    # the network
    model: str = setting("auto", "network architecture; auto selects one for the data")
    width: float = setting(1.0, "width multiplier of the hidden channels", 0.01, 16)
    depth: int | None = setting(
        None, "convolutions of each mlpconv layer, the k x k one and 1x1s; null keeps the network's default", 1, 15
    )
    kernel: int | None = setting(
        None, "size of the first convolution of each mlpconv layer, odd; null keeps the network's default", 1, 63
    )
    activation: str | None = setting(None, "activation function: relu, maxout, ...; null keeps the network's default")
    norm: Literal["network", "none", "batch"] = setting("network", "normalisation after each convolution")
    pool_first: bool | None = setting(None, "pool before norm and activation; null keeps the network's default")
    pool2: Literal["max", "avg"] | None = setting(None, "type of the second pooling layer of nin_cifar10")
    dropout: float | None = setting(None, "dropout after pooling layers; null keeps the network's default", 0, 0.95)
    last_relu: bool | None = setting(None, "ReLU after the last 1x1 convolution; null keeps the network's default")
    head: Literal["gap", "fc", "fc+dropout"] = setting("gap", "classifier head: pooling or fully connected")
    init: Literal["paper", "he", "identity"] | None = setting(None, "initialisation; null keeps the network's default")
    whiten: bool = setting(False, "initialise the first layer with a whitening of training patches")
    # the images
    preprocessing: tuple[str, ...] = setting(
        ("standardize",), "preprocessing steps, in order: scale, mean, standardize, gcn, zca, lcn"
    )
    size: int | None = setting(None, "image height and width, pixels; null infers them", 1, 4096)
    fit: Literal["auto", "crop", "pad", "stretch"] = setting(
        "auto", "how images are resized: centre crop, pad or stretch; auto selects by aspect ratio"
    )
    val_fraction: float = setting(
        0.2, "fraction of the training images held out if the data has no validation split", 0, 0.9
    )
    crop: int = setting(0, "padding of the random crop, pixels; 0 disables it", 0, 512)
    crop_mode: Literal["zero", "reflect"] = setting("reflect", "padding mode of the random crop")
    flip: Literal["none", "random", "alternate", "auto"] = setting(
        "none",
        "horizontal flip; alternate: each image every other epoch; auto: random for colour images, none for grey",
    )
    cutout: int = setting(0, "side of the cutout square, pixels; 0 disables it", 0, 512)
    mixup: float = setting(0.0, "mixup alpha; 0 disables it", 0, 10)
    sizes: tuple[int, ...] = setting((), "progressive resizing: image sides, each for an equal fraction of the steps")
    # the optimizer
    epochs: int = setting(20, "passes over the training images", 1, MAX_EPOCHS)
    min_steps: int = setting(
        0, "minimum number of steps: small data sets get more epochs, unless you set epochs", 0, 10_000_000
    )
    batch_size: int = setting(128, "images per step", 1, 65_536)
    shuffle_window: int = setting(0, "images shuffled together, for slow disks; 0 shuffles all", 0, 100_000_000)
    optimizer: Literal["sgd", "adamw", "muon"] = setting("sgd", "optimizer")
    lr: float = setting(0.05, "peak learning rate (muon: step size relative to the norm of a weight)", 0, 1e6)
    momentum: float = setting(0.9, "momentum; beta1 of AdamW", 0, 0.9999)
    nesterov: bool = setting(True, "Nesterov momentum")
    weight_decay: float = setting(5e-4, "weight decay; never applied to biases and norms", 0, 100)
    bias_lr: float = setting(1.0, "learning-rate multiplier for biases and norms", 0, 1000)
    last_lr: float = setting(1.0, "learning-rate multiplier for the last layer", 0, 1000)
    layer_decay: float = setting(1.0, "learning-rate multiplier of the first layer; geometric in between", 1e-6, 1)
    schedule: Literal["constant", "linear", "cosine", "onecycle", "steps"] = setting(
        "onecycle", "learning-rate schedule"
    )
    warmup: float = setting(0.0, "fraction of the steps for linear warm-up", 0, 0.9)
    milestones: tuple[int, ...] = setting((), "epochs after which schedule=steps divides the learning rate by 10")
    label_smoothing: float = setting(0.0, "probability mass of the target spread over all classes", 0, 0.9)
    freeze: tuple[float, ...] = setting(
        (), "fractions of the run after which the first convolution, then its mlpconv layer, are frozen"
    )
    clip: float | None = setting(None, "maximum gradient norm; null disables clipping", 1e-6, 1e6)
    ema: float = setting(0.0, "EMA decay of the weights that are evaluated and saved; 0 disables it", 0, 0.99999)
    ema_every: int = setting(1, "steps between updates of the EMA", 1, 10_000)
    # the run
    seed: int = setting(0, "random seed of data order, initialisation, augmentation and dropout", 0, 2**31 - 1)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "compute dtype; auto: bf16 if it is clearly faster on this machine"
    )
    engine: Literal["auto", "eager", "graph", "compile"] = setting(
        "auto",
        "how a step runs: eager, as a CUDA graph, or compiled; auto: on a GPU whichever of the first two is faster",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "device; auto uses a GPU if PyTorch finds one")
    virtual_shards: int = setting(
        0,
        "parts of a batch (a power of two) whose gradients add in a fixed order; 0: 1, or 4 with torchrun",
        0,
        512,
    )
    gradient_sum: Literal["fixed", "free"] = setting(
        "fixed", "order of the sum over processes; free is faster, and its bits depend on their number"
    )
    workers: int = setting(0, "threads that prefetch batches; the result does not depend on it", 0, 64)
    eval_every: int = setting(1, "epochs between validations", 1, MAX_EPOCHS)
    checkpoint_minutes: float = setting(5.0, "maximum minutes between checkpoints within an epoch", 0, 1e6)
    on_collapse: Literal["stop", "repair"] = setting("stop", "action when training collapses at loss ln(classes)")

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = coerce(item.name, getattr(self, item.name), hints[item.name])
            check_range(item.name, value, item.metadata["low"], item.metadata["high"])
            object.__setattr__(self, item.name, value)
        check_combination(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def with_settings(self, /, **settings: Any) -> Recipe:
        """Return a copy with the given settings; raises UsageError for an unknown key, with the closest match."""
        known = {item.name for item in dataclasses.fields(self)}
        for key in settings:
            if key not in known:
                raise UsageError(f"unknown recipe setting {shorten(key)}: {did_you_mean(key[:80], known)}")
        return dataclasses.replace(self, **settings)


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Convert a value to the type that the field declares; raises UsageError if it has another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return coerce(name, value, next(a for a in arguments if a is not types.NoneType))
    if origin is Literal:
        if value in arguments:
            return value
        suggestion = did_you_mean(value[:80] if isinstance(value, str) else "", arguments)
        raise UsageError(f"{name}={shorten(value)} is not accepted; {suggestion}")
    if origin is tuple:
        values = value.split(",") if isinstance(value, str) else value
        if isinstance(values, int) and not isinstance(values, bool):  # --set milestones=200
            values = [values]
        if not isinstance(values, (list, tuple)):
            example = {int: "24,28,32", float: "0.3,0.75", str: "gcn,zca"}[arguments[0]]
            raise UsageError(f"{name}={shorten(value)} is not accepted: give a list, like {name}={example}.")
        return tuple(coerce(name, from_text(item), arguments[0]) for item in values)
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 1000 else math.inf  # too large for a float: out of every range
    if isinstance(value, hint) and not (hint is not bool and isinstance(value, bool)):
        return value
    type_names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    raise UsageError(f"{name}={shorten(value)} is not accepted: give {type_names[hint]}.")


def shorten(value: Any) -> str:
    """Return the repr of a value, truncated to 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list that contains itself
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    if value is None or low is None or high is None:
        return
    if not low <= value <= high:  # also refuses NaN
        raise UsageError(f"{name}={shorten(value)} is out of range: accepted are {low} to {high}.")


def from_text(text: Any) -> Any:
    """Parse a setting from the command line: JSON, Python's literals, a decimal such as .05, or a word."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if re.fullmatch(r"[-+]?\d*\.\d*", text) and text.strip("-+."):  # .05 and 5. are not JSON
            return float(text)
        return {"none": None, "None": None, "True": True, "False": False}.get(text, text)


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `key=value` from the command line into key and value; raises UsageError if there is no `=`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"the setting {shorten(text)} is not accepted: give key=value, like lr=0.05.")
    key = key.strip().replace("-", "_")
    # A Literal such as norm=none means the word, not null.
    return key, value.strip() if value.strip() == "none" and key in ("norm", "flip") else from_text(value.strip())
