"""Optimisers by recipe: parameter groups as in the paper (biases and last layer at rates of their own), and Muon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlpconv.training.eager import SGD, AdamW, Optimizer
from mlpconv.training.recipe import Recipe

__all__ = ["Muon", "Optimizers", "make_optimizers"]


class Muon(Optimizer):
    """Orthogonalised momentum for convolution weights, seen as (out, in x k x k) matrices (Jordan 2024).

    A step has `lr` times the norm the weight started with, and the norm is put back after it: behind a normalisation
    only the direction of a weight matters, and without this the weights grow until nothing moves.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, nesterov: bool = True, steps: int = 4) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Move every weight that has a gradient; `closure` is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, weight.grad, group)

    def move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
            state["norm"] = weight.norm()
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        if group["nesterov"]:
            gradient = gradient.lerp(buffer, group["momentum"])
        else:
            gradient = buffer
        direction = orthogonal(gradient.flatten(1), group["steps"]).view_as(weight)
        weight.add_(direction * (state["norm"] / direction.norm().clamp_min(1e-7)), alpha=-group["lr"])
        weight.mul_(state["norm"] / weight.norm().clamp_min(1e-7))


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """The nearest semi-orthogonal matrix, about, by a quintic Newton-Schulz iteration on the smaller side.

    The iteration x <- (a + b g + c g g) x with g = x x^T multiplies x by polynomials of g, which commute: they are
    gathered on the small square side, and the long side is met twice in all.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # chosen by Jordan for a steep slope at zero: singular values end within 0.7..1.2
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide @ wide.T
    squared_norm = gram.trace().clamp_min(1e-14)
    gram /= squared_norm
    factor = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for step in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        factor = polynomial @ factor
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    x = (factor * squared_norm.rsqrt()) @ wide
    return x if wide is matrix else x.T


class Optimizers:
    """One or two optimisers that move together; their state is a flat dictionary of tensors."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.optimizers = parts

    def set_lr(self, lr: float) -> None:
        """Set the rate of every group: `lr` times its own scale (a group with a fixed base: that base)."""
        for part in self.optimizers:
            for group in part.param_groups:
                group["lr"] = lr * group["scale"]

    def step(self) -> None:
        for part in self.optimizers:
            part.step()

    def zero_grad(self) -> None:
        for part in self.optimizers:
            part.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Drop all momentum: what it remembers is of weights that are no more."""
        for part in self.optimizers:
            part.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """The state by name: part.parameter.key."""
        return {
            f"{p}.{i}.{key}": value
            for p, part in enumerate(self.optimizers)
            for i, state in part.state_dict()["state"].items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave; raises ValueError where it is the state of other parameters."""
        for p, part in enumerate(self.optimizers):
            parameters = [parameter for group in part.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                number, i, key = name.split(".", 2)
                if int(number) == p:
                    if int(i) not in range(len(parameters)) or value.shape not in ((), parameters[int(i)].shape):
                        raise ValueError(f"{name} of shape {tuple(value.shape)} belongs to no weight here")
                    state.setdefault(int(i), {})[key] = value
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
            for parameter, kept in part.state.items():
                for key, value in kept.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        # The memory layout decides the order of sums: with another one the bits would differ.
                        kept[key] = torch.empty_like(parameter).copy_(value)


# Muon's rate is a share of a weight's norm; what it does not move (norms, biases, the last layer) takes plain SGD at
# this many times that share (0.05 at the usual 0.06).
SGD_LR_SCALE = 0.05 / 0.06


def make_optimizers(model: nn.Module, recipe: Recipe) -> Optimizers:
    """The recipe's optimiser over the paper's groups: weights with decay, biases and norms without, the last apart."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, 0.999)
        return Optimizers([AdamW(groups, lr=recipe.lr, betas=betas, fused=True)])
    sgd: dict[str, Any] = {"lr": recipe.lr, "momentum": recipe.momentum, "fused": True}
    sgd["nesterov"] = recipe.nesterov and recipe.momentum > 0
    if recipe.optimizer == "sgd":
        return Optimizers([SGD(groups, **sgd)])
    matrices = [group for group in groups if group["matrix"]]
    rest = [group | {"scale": group["scale"] * SGD_LR_SCALE} for group in groups if not group["matrix"]]
    muon = Muon(
        [{"params": g["params"], "scale": g["scale"]} for g in matrices], recipe.lr, recipe.momentum, recipe.nesterov
    )
    return Optimizers([muon, SGD(rest, **sgd)])


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Up to five groups, each with its learning-rate `scale`; `matrix` marks the hidden convolutions' weights."""
    last = getattr(model, "last_layer", None)
    groups: dict[tuple[bool, bool, bool], list[Tensor]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                weight = name == "weight" and parameter.ndim > 1
                key = (weight, module is last, isinstance(module, nn.Conv2d))
                groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "scale": (1.0 if weight else recipe.bias_lr) * (recipe.last_lr if is_last else 1.0),
            "weight_decay": recipe.weight_decay if weight else 0.0,
            "matrix": weight and convolution and not is_last,
        }
        for (weight, is_last, convolution), parameters in groups.items()
    ]
