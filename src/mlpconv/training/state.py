"""The state of a training run at a step: the content of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlpconv.errors import CheckpointError
from mlpconv.models.base import Network
from mlpconv.training.checkpoint import Checkpoint
from mlpconv.training.optim import Optimizers
from mlpconv.training.progress import COLUMNS, EpochMetrics
from mlpconv.training.recipe import Recipe

__all__ = ["EMA", "State", "make_ema"]

NUMBER = (int, float)
JSON_FIELDS: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "precision": (str,),
    "history": (list,),
    "lr_factor": NUMBER,
    "repairs": (int,),
    "repaired_at": (int, type(None)),
    "guesses": (int,),
    "seconds": NUMBER,
    "cpu_seconds": NUMBER,
}


@dataclass
class State:
    """Weights, optimizers, counters and history.

    `totals` are the sums of loss, correct predictions and images of this epoch; `guesses` is the number of consecutive
    steps with a chance-level loss since the last collapse test.
    """

    model: Network
    ema: EMA | None
    optimizers: Optimizers
    precision: str
    totals: Tensor
    step: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    lr_factor: float = 1.0
    repairs: int = 0
    repaired_at: int | None = None
    guesses: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def eval_model(self) -> Network:
        """The network to evaluate and save: the EMA once it has been updated, else the model."""
        if self.ema is None or int(self.ema.n_averaged) == 0:
            return self.model
        return cast("Network", self.ema.module)

    def to_checkpoint(self) -> Checkpoint:
        """Return groups of tensors, and everything else as JSON values; floats are preserved bit for bit."""
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizers.tensors()}
        if self.ema is not None:
            tensors["averaged"] = self.ema.state_dict()
        return tensors, {name: getattr(self, name) for name in JSON_FIELDS} | {"totals": self.totals.tolist()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint; raises CheckpointError if it belongs to another network or recipe."""
        tensors, values = checkpoint
        try:
            self.model.load_state_dict(tensors["model"])
            if self.ema is not None:
                self.ema.load_state_dict(tensors["averaged"])
            self.optimizers.load_tensors(tensors["optimizer"])
            for name, types in JSON_FIELDS.items():
                if type(values[name]) not in types:
                    raise TypeError(f"{name} is {values[name]!r:.40}")
                setattr(self, name, values[name])
            for row in self.history:
                if set(row) != set(COLUMNS):
                    raise ValueError("a row of its history has the wrong columns")
            self.totals.copy_(torch.tensor(values["totals"], dtype=torch.float64))
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(f"the checkpoint does not fit this network and recipe: {error}") from error

    def finite(self) -> bool:
        """Return whether all weights and running statistics are finite, including those of the EMA."""
        modules = (self.model, self.eval_model) if self.ema is not None else (self.model,)
        return all(bool(torch.isfinite(value).all()) for module in modules for value in module.state_dict().values())


class EMA(AveragedModel):
    """Exponential moving average of weights and running statistics, with a smaller decay at the start.

    PyTorch's update reads the count back from the device, which synchronises a GPU.
    """

    def __init__(self, model: Network, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the weights of `model`; the first update copies them."""
        count = int(self.n_averaged)  # a CPU tensor
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        pairs = list(zip(tensors_of(self.module), tensors_of(model), strict=True))
        average, current = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        torch._foreach_lerp_(average, current, 1 - decay)
        for own, source in pairs:
            if not own.is_floating_point():  # counters of batch norm
                own.copy_(source)
        self.n_averaged += 1


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Return weights and running statistics, detached."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def make_ema(model: Network, recipe: Recipe) -> EMA | None:
    """Return the EMA of the weights, None if the recipe disables it."""
    return EMA(model, recipe.ema) if recipe.ema else None
