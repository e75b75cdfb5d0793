"""The options of `mlpconv train` about the initial weights, and about what is trained from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.options import Switch

__all__ = ["StartOptions"]

From = Annotated[
    str | None,
    Parameter(
        "--from",
        help="Initial weights: scratch (random), a shipped network such as efficientnet_lite0 or squeezenet, a model "
        "file or run folder, timm:NAME, or auto, which compares the first three. auto is the default for a folder of "
        "images without --recipe and settings of training such as --epochs.",
    ),
]
Tune = Annotated[
    str | None,
    Parameter(
        help="Layers trained with --from NETWORK: head (the default: a classifier is fitted on its features, without "
        "epochs), last (the last third, by the recipe finetune) or all."
    ),
]
Teacher = Annotated[
    str | None,
    Parameter(
        help="Trained network of the same classes to learn from (distillation): a model file, run folder or shipped "
        "network; --set teacher_weight=0.9 teacher_temperature=8 are the defaults of the loss."
    ),
]
Minutes = Annotated[
    float | None,
    Parameter(
        help="With --from auto: train more layers than the classifier if that is estimated to take at most this many "
        "minutes; default 0.25."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class StartOptions:
    """Where training starts, and how much of the network it changes."""

    from_: From = None
    weights: str | None = None
    """safetensors file with the weights of --from timm:NAME; without it, they are downloaded."""
    tune: Tune = None
    minutes: Minutes = None
    balance: Switch = False
    """Give all classes the same weight: draw their images equally often, or weigh them in a fit."""
    calibrate: Switch = False
    """At the end, divide the logits by a temperature fitted on the validation images."""
    add_classes: Switch = False
    """Keep the classes of the network in --from with their weights, and fit only the new ones."""
    teacher: Teacher = None
    cache_gb: float | None = None
    """Maximum size of the cache of features and teacher outputs on disk, in gigabytes; default 2."""

    def settings(self) -> dict[str, Any]:
        """Return the options that are settings of the recipe; None for those that are not given."""
        switches = {name: getattr(self, name) or None for name in ("balance", "calibrate", "add_classes")}
        words = {"source": self.from_, "weights": self.weights, "tune": self.tune, "teacher": self.teacher}
        return words | switches

    def arguments(self) -> dict[str, Any]:
        """Return the options that are arguments of `fit` and are given."""
        values = {"cache_gb": self.cache_gb, "minutes": self.minutes}
        return {name: value for name, value in values.items() if value is not None}
