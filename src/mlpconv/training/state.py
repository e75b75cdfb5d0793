"""All that a training run is at one step: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mlpconv.errors import CheckpointError
from mlpconv.models.base import Network
from mlpconv.training.checkpoint import Checkpoint
from mlpconv.training.optim import Optimizers
from mlpconv.training.progress import COLUMNS, Row
from mlpconv.training.recipe import Recipe

__all__ = ["State", "averaged_model"]

NUMBER = (int, float)
PLAIN: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "precision": (str,),
    "history": (list,),
    "best": (dict, type(None)),
    "lr_factor": NUMBER,
    "repairs": (int,),
    "repaired_at": (int, type(None)),
    "guesses": (int,),
    "seconds": NUMBER,
    "cpu_seconds": NUMBER,
}


@dataclass
class State:
    """Weights, optimiser, counters and history.

    `totals` are this epoch's sums of loss, right answers and images; `guesses` the steps in a row no better than
    guessing since the network was last looked at.
    """

    model: Network
    averaged: AveragedModel | None
    optimizers: Optimizers
    precision: str
    totals: Tensor
    step: int = 0
    history: list[Row] = field(default_factory=list)
    best: Row | None = None
    lr_factor: float = 1.0
    repairs: int = 0
    repaired_at: int | None = None
    guesses: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def judged(self) -> Network:
        """The weights that are validated and kept: the average, once there is one."""
        if self.averaged is None or int(self.averaged.n_averaged) == 0:
            return self.model
        return cast("Network", self.averaged.module)

    def to_checkpoint(self) -> Checkpoint:
        """Groups of tensors, and everything else as JSON; floats survive to the last bit."""
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizers.tensors()}
        if self.averaged is not None:
            tensors["averaged"] = self.averaged.state_dict()
        return tensors, {name: getattr(self, name) for name in PLAIN} | {"totals": self.totals.tolist()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take everything back; raises CheckpointError where the checkpoint is of another network or recipe."""
        tensors, plain = checkpoint
        try:
            self.model.load_state_dict(tensors["model"])
            if self.averaged is not None:
                self.averaged.load_state_dict(tensors["averaged"])
            self.optimizers.load_tensors(tensors["optimizer"])
            for name, kinds in PLAIN.items():
                if type(plain[name]) not in kinds:
                    raise TypeError(f"{name} is {plain[name]!r:.40}")
                setattr(self, name, plain[name])
            for row in [*self.history, *filter(None, [self.best])]:
                if set(row) != set(COLUMNS):
                    raise ValueError("a row of its history has other columns")
            self.totals.copy_(torch.tensor(plain["totals"], dtype=torch.float64))
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(f"the checkpoint does not fit this network and recipe: {error}") from error

    def finite(self) -> bool:
        """Whether no weight or running statistic is NaN or infinite, nor any of those that are judged."""
        modules = (self.model, self.judged) if self.averaged is not None else (self.model,)
        return all(bool(torch.isfinite(value).all()) for module in modules for value in module.state_dict().values())


def averaged_model(model: Network, recipe: Recipe) -> AveragedModel | None:
    """The exponential average of the weights where the recipe asks for one; its decay is smaller at the start."""
    if not recipe.ema:
        return None

    @torch.no_grad()
    def lerp(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        decay = min(recipe.ema, (1 + int(count)) / (10 + int(count)))
        if average[0].is_floating_point():
            torch._foreach_lerp_(list(average), list(current), 1 - decay)
        else:  # counters of batch norm
            for mine, other in zip(average, current, strict=True):
                mine.copy_(other)

    return AveragedModel(model, multi_avg_fn=lerp, use_buffers=True)
