"""Parts of networks that tests write down where they need them: a function as a module, a helper, a chaotic map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Lambda(nn.Module):
    """`function(self, x)` as the forward pass, with these submodules."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def share(x: Tensor) -> Tensor:
    """Each image's part of the batch."""
    return x / len(x)


def chaotic(x: Tensor, times: int, rate: float = 3.99) -> Tensor:
    """The logistic map of numbers in 0..1, so many times: each makes a difference about twice as large."""
    for _ in range(times):
        x = rate * x * (1 - x)
    return x
