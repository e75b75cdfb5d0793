"""All that a training run is at one step: what a checkpoint holds."""

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
    ema: EMA | None
    optimizers: Optimizers
    precision: str
    totals: Tensor
    step: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    best: EpochMetrics | None = None
    lr_factor: float = 1.0
    repairs: int = 0
    repaired_at: int | None = None
    guesses: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def eval_model(self) -> Network:
        """The weights that are validated and kept: the average, once there is one."""
        if self.ema is None or int(self.ema.n_averaged) == 0:
            return self.model
        return cast("Network", self.ema.module)

    def to_checkpoint(self) -> Checkpoint:
        """Groups of tensors, and everything else as JSON; floats survive to the last bit."""
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizers.tensors()}
        if self.ema is not None:
            tensors["averaged"] = self.ema.state_dict()
        return tensors, {name: getattr(self, name) for name in PLAIN} | {"totals": self.totals.tolist()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take everything back; raises CheckpointError where the checkpoint is of another network or recipe."""
        tensors, plain = checkpoint
        try:
            self.model.load_state_dict(tensors["model"])
            if self.ema is not None:
                self.ema.load_state_dict(tensors["averaged"])
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
        modules = (self.model, self.eval_model) if self.ema is not None else (self.model,)
        return all(bool(torch.isfinite(value).all()) for module in modules for value in module.state_dict().values())


class EMA(AveragedModel):
    """The exponential average of a network's weights and running statistics; its decay is smaller at the start.

    PyTorch's own update reads the count back from the device, and a GPU has to finish all its work to answer.
    """

    def __init__(self, model: Network, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`; the first time, to them."""
        count = int(self.n_averaged)  # it stays in the processor's memory
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        pairs = list(zip(tensors_of(self.module), tensors_of(model), strict=True))
        average, current = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        torch._foreach_lerp_(average, current, 1 - decay)
        for mine, other in pairs:
            if not mine.is_floating_point():  # counters of batch norm
                mine.copy_(other)
        self.n_averaged += 1


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Weights and running statistics, without their history of gradients."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def make_ema(model: Network, recipe: Recipe) -> EMA | None:
    """The average of the weights where the recipe asks for one."""
    return EMA(model, recipe.ema) if recipe.ema else None
