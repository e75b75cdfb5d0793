"""PyTorch's optimizers without the wrappers for `torch.compile`.

`step`, `zero_grad` and others are wrapped to be skipped by the compiler. The first call of such a wrapper imports
`torch._dynamo`, which takes longer than a short training run needs to start, and nothing is compiled here. These
classes call the wrapped functions directly.
"""

from __future__ import annotations

from inspect import unwrap

import torch

__all__ = ["SGD", "AdamW", "Optimizer"]


class _Unmarked:
    """Provide the unwrapped versions of the wrapped methods."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class Optimizer(_Unmarked, torch.optim.Optimizer):
    """Base class of custom optimizers; `step` must disable gradients itself."""


class SGD(_Unmarked, torch.optim.SGD):
    """`torch.optim.SGD` without the compiler wrappers."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class AdamW(_Unmarked, torch.optim.AdamW):
    """`torch.optim.AdamW` without the compiler wrappers."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
