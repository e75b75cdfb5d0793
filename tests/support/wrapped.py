"""Building blocks for test networks: a function as a module, a batch-dependent function, a chaotic map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Lambda(nn.Module):
    """A module with these submodules whose forward is `function(self, x)`."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def share(x: Tensor) -> Tensor:
    """Divide by the batch size."""
    return x / len(x)


def chaotic(x: Tensor, times: int, rate: float = 3.99) -> Tensor:
    """Apply the logistic map to values in 0..1 several times; each application about doubles a difference."""
    for _ in range(times):
        x = rate * x * (1 - x)
    return x
