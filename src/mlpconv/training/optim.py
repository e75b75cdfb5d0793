"""Optimizers of a recipe: the paper's parameter groups (learning rates for biases and last layer), and Muon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlpconv.training.eager import SGD, AdamW, Optimizer
from mlpconv.training.recipe import Recipe

__all__ = ["Muon", "Optimizers", "make_optimizers"]


class Muon(Optimizer):
    """Orthogonalised momentum for convolution weights, as (out, in x k x k) matrices (Jordan 2024).

    A step has length `lr` times the initial norm of the weight, and the norm is restored after it: before a
    normalisation only the direction of a weight matters, and growing weights would make the effective step vanish.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, nesterov: bool = True, steps: int = 4) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every weight that has a gradient; `closure` is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, weight.grad, group)

    def update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update one weight in place, and its momentum."""
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
        weight.addcmul_(direction, state["norm"] / direction.norm().clamp_min(1e-7) * -group["lr"])
        weight.mul_(state["norm"] / weight.norm().clamp_min(1e-7))


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """Return approximately the nearest semi-orthogonal matrix, by a quintic Newton-Schulz iteration.

    The iteration x <- (a + b g + c g g) x with g = x x^T multiplies x by polynomials of g, which commute: they are
    multiplied as small square matrices, and only two products involve the long side.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's choice, steep at zero: singular values end within 0.7..1.2
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
    """One or two optimizers that step together; their state is a flat dictionary of tensors."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter group to `lr` times the scale of the group."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr * group["scale"])
                else:
                    group["lr"] = lr * group["scale"]

    def lr_on(self, device: torch.device) -> None:
        """Keep the learning rates on the device, where a captured step reads them."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]), device=device)
                if "capturable" in group:
                    group["capturable"] = True

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Discard the state, such as momentum, after weights were reinitialised."""
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name: optimizer.parameter.key, the first two as indices."""
        return {
            f"{p}.{i}.{key}": value
            for p, optimizer in enumerate(self.optimizers)
            for i, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned; raises ValueError if its shapes differ from the parameters."""
        for p, optimizer in enumerate(self.optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                number, i, key = name.split(".", 2)
                if int(number) == p:
                    if int(i) not in range(len(parameters)) or value.shape not in ((), parameters[int(i)].shape):
                        raise ValueError(f"{name} of shape {tuple(value.shape)} matches no weight")
                    state.setdefault(int(i), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        # The memory layout determines the order of summation: keep it, for a bit-exact resume.
                        values[key] = torch.empty_like(parameter).copy_(value)


# Muon's learning rate is relative to the norm of a weight. All other parameters (norms, biases, the last layer) are
# updated by SGD with this multiple of it (0.05 at the default of 0.06).
SGD_LR_SCALE = 0.05 / 0.06


def make_optimizers(model: nn.Module, recipe: Recipe) -> Optimizers:
    """Return the recipe's optimizers, with the parameter groups of the paper."""
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
    """Return the parameter groups with their learning-rate `scale`; `matrix` marks weights for Muon.

    There are up to five, and more with `layer_decay`, which scales the layers in their order in the network.
    """
    last = getattr(model, "last_layer", None)
    layers = [module for module in model.modules() if module._parameters]
    groups: dict[tuple[bool, bool, bool, float], list[Tensor]] = {}
    for index, module in enumerate(layers):
        depth = index / max(len(layers) - 1, 1)  # 0..1, from the first layer to the last
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                weight = name == "weight" and parameter.ndim > 1
                decay = recipe.layer_decay ** (1 - depth)
                key = (weight, module is last, isinstance(module, nn.Conv2d), decay)
                groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "scale": (1.0 if weight else recipe.bias_lr) * (recipe.last_lr if is_last else 1.0) * decay,
            "weight_decay": recipe.weight_decay if weight else 0.0,
            "matrix": weight and convolution and not is_last,
        }
        for (weight, is_last, convolution, decay), parameters in groups.items()
    ]
