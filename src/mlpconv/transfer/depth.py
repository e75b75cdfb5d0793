"""How many layers of a chosen network are trained further: as many as the time allows, by an estimate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mlpconv.data import Dataset
from mlpconv.data.sampler import Batch
from mlpconv.errors import UsageError
from mlpconv.models.base import run_stages
from mlpconv.text import option
from mlpconv.training import Recipe, find_recipe
from mlpconv.training.freeze import train_mode
from mlpconv.training.frozen_outputs import count_images, fits_in_memory, frozen_stages, logits_after
from mlpconv.training.plan import resolve_plan
from mlpconv.training.precision import time_step
from mlpconv.training.seeding import keeping_random_states
from mlpconv.training.step import autocast
from mlpconv.transfer.features import feature_precision
from mlpconv.transfer.source import TUNED_LR, Source

__all__ = [
    "VALIDATIONS", "DepthChoice", "DepthEstimate", "choose_depth", "estimate_seconds", "finetune_recipe", "time_limit",
]  # fmt: skip

MINUTES = 0.25
"""The default limit of the time for training more layers than the classifier."""
MAX_MINUTES = 100_000
DEPTHS = {"all": "all layers", "last": "the last layers"}  # the deepest first
VALIDATIONS = 12  # about, in a run
TIMED_ON_CPU = 16  # images: as fast per image as a full batch, and done sooner


@dataclass(frozen=True)
class DepthEstimate:
    """The estimated wall-clock seconds of training at a depth, "last" or "all"."""

    tune: str
    seconds: float


@dataclass(frozen=True)
class DepthChoice:
    """How many layers are trained, the time limit, and the estimates that decided."""

    tune: str
    minutes: float
    estimates: tuple[DepthEstimate, ...]
    eval_every: int = 1
    """Epochs between validations: small data sets have many short epochs."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run that follows."""
        return {"tune": self.tune} | ({} if self.tune == "head" else {"eval_every": self.eval_every})

    @property
    def reason(self) -> str:
        """The choice and its reason, in one sentence."""
        trained = "only the classifier is fitted"
        if self.tune != "head":
            trained = f"{DEPTHS[self.tune]} are trained, in about {self.estimates[-1].seconds:,.0f} s"
        limit = int(self.minutes) if self.minutes == int(self.minutes) else self.minutes
        trained += f", since {option('minutes', limit)} allows {60 * self.minutes:,.0f} s"
        longer = (item for item in self.estimates if item.tune != self.tune)
        names = {"all": "all layers, usually the most accurate,", "last": "the last layers"}
        rest = [f"{names[item.tune]} would take about {item.seconds:,.0f} s" for item in longer]
        return f"{trained}: {' and '.join(rest)}" if rest else trained

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "tune": self.tune,
            "minutes": self.minutes,
            "estimates": [asdict(item) for item in self.estimates],
            "reason": self.reason,
        }


def time_limit(minutes: float | None, settings: Mapping[str, Any]) -> float | None:
    """Return the time limit for training more layers, None if the user says how many; raises UsageError."""
    if "tune" in settings:
        if minutes is not None:
            raise UsageError(
                f"{option('minutes', minutes)} chooses how many layers are trained, and "
                f"{option('tune', settings['tune'])} says it: drop one of the two."
            )
        return None
    if minutes is not None and not 0 <= minutes <= MAX_MINUTES:
        raise UsageError(f"{option('minutes', minutes)} is not accepted: give 0 to {MAX_MINUTES:,} minutes.")
    return MINUTES if minutes is None else minutes


def choose_depth(source: Source, dataset: Dataset, recipe: Recipe, minutes: float, device: torch.device) -> DepthChoice:
    """Return the deepest training of a source's network whose estimated time is at most `minutes`.

    Of `recipe`, the settings of the fitted classifier count: images, flip, seed, balance.
    """
    estimates = []
    tuned = finetune_recipe(source.name).with_settings(**shared(recipe))
    plan = resolve_plan(tuned, len(dataset.split("train")), dataset.channels)
    every = max(1, plan.epochs // VALIDATIONS)
    for tune in DEPTHS:
        plan = plan.with_settings(tune=tune, eval_every=every)
        estimates.append(DepthEstimate(tune, round(estimate_seconds(source, dataset, plan, device), 1)))
        if estimates[-1].seconds <= 60 * minutes:
            return DepthChoice(tune, minutes, tuple(estimates), every)
    return DepthChoice("head", minutes, tuple(estimates))


def finetune_recipe(source: str) -> Recipe:
    """Return the recipe `finetune`, with the learning rate of a source's network."""
    recipe = find_recipe("finetune")
    return recipe.with_settings(lr=TUNED_LR[source]) if source in TUNED_LR else recipe


def shared(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that a fitted classifier and further training have in common."""
    names = ("source", "size", "fit", "flip", "seed", "precision", "balance")
    return {name: getattr(recipe, name) for name in names}


def estimate_seconds(source: Source, dataset: Dataset, recipe: Recipe, device: torch.device) -> float:
    """Return the wall-clock seconds of the epochs of a recipe, from a training step and forward passes."""
    train, validation = dataset.split("train"), dataset.splits.get("val")
    count = min(len(train), recipe.batch_size if device.type == "cuda" else TIMED_ON_CPU)
    pixels, labels = (torch.from_numpy(np.array(part[:count])).to(device) for part in (train.images, train.labels))
    precision = feature_precision(recipe.precision, device)
    with keeping_random_states(device):
        network = source.network(dataset, recipe).to(device)
        train_mode(network, recipe)
        x = source.preprocessing(dataset).to(device)(pixels).contiguous(memory_format=torch.channels_last)
        logits, once = cast("Callable[[Tensor], Tensor]", network), 0.0
        if stages := frozen_stages(network, recipe):
            frozen = partial(run_stages, network.stages[:stages])
            seconds, outputs = min((time_forward(frozen, x, precision) for _ in range(2)), key=itemgetter(0))
            if fits_in_memory(outputs[:1], train, validation, recipe):
                logits, x = partial(logits_after, network, stages), outputs.float()
                once = seconds * count_images(train, validation, recipe)
        dtypes = {"fp32", precision} if recipe.precision == "auto" else {precision}  # the run takes the faster one
        batch = Batch(x, labels)
        step = min(time_step(logits, batch, dtype) for dtype in dtypes for _ in range(2))  # the first prepares kernels
        forward, _ = time_forward(logits, x, precision)
    validated = -(-recipe.epochs // recipe.eval_every) * len(validation or ())
    return (once + recipe.epochs * len(train) * step + validated * forward) / count


def time_forward(forward: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> tuple[float, Tensor]:
    """Return the seconds of a forward pass, and its result."""
    start = time.perf_counter()
    with torch.no_grad(), autocast(precision, x.device):
        result = forward(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start, result
