"""PyTorch's optimisers without the marks for its compiler.

`step`, `zero_grad` and others are wrapped so that the compiler passes over them. The first call of such a wrapper
imports that compiler, which takes longer than a short training run needs to begin, and nothing is compiled here. The
functions inside the wrappers are used as they are.
"""

from __future__ import annotations

from inspect import unwrap

import torch

__all__ = ["SGD", "AdamW", "Optimizer"]


class _Unmarked:
    """The methods that are marked, as they are inside."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class Optimizer(_Unmarked, torch.optim.Optimizer):
    """The base of an optimiser of our own, whose `step` takes care of gradients itself."""


class SGD(_Unmarked, torch.optim.SGD):
    """`torch.optim.SGD`."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class AdamW(_Unmarked, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
