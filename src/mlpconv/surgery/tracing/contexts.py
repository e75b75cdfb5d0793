"""Settings of PyTorch that a forward pass may switch while it runs: a graph does not hold them, so none may be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = ["changed_setting", "current_settings"]

DEVICES = ("cpu", "cuda", "mps", "xpu")


def _autocast() -> Any:
    """How many autocast contexts there are, and the dtype on each device: one that is disabled counts, too."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth, *(torch.get_autocast_dtype(each) if torch.is_autocast_enabled(each) else None for each in DEVICES)


def _attention() -> Any:
    """Which kernels scaled dot product attention may choose."""
    kernels: Any = torch.backends.cuda
    enabled = (kernels.flash_sdp_enabled(), kernels.mem_efficient_sdp_enabled(), kernels.math_sdp_enabled())
    return *enabled, kernels.cudnn_sdp_enabled()


def _kernels() -> Any:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch._C._get_mkldnn_enabled()


SETTINGS: dict[str, Callable[[], Any]] = {
    "torch.inference_mode on or off": torch.is_inference_mode_enabled,
    "gradients off in an autograd.Function whose apply was read before": torch._C._is_fwd_grad_enabled,
    "gradients on or off": torch.is_grad_enabled,
    "torch.autocast on or off": _autocast,
    "torch's default dtype": torch.get_default_dtype,
    "the seed of torch's random numbers": torch.initial_seed,
    "kernels of attention": _attention,
    "torch.backends": _kernels,
    "deterministic algorithms on or off": torch.are_deterministic_algorithms_enabled,
    "a TorchDispatchMode on or off": torch._C._len_torch_dispatch_stack,
    "forward-mode differentiation on or off": lambda: forward_ad._current_level,
    "hooks on saved tensors": lambda: torch._C._autograd._top_saved_tensors_default_hooks(True),
}
"""What can be switched, in words, and how to read it."""


def current_settings() -> tuple[Any, ...]:
    """All settings as they are now, to be compared."""
    return tuple(read() for read in SETTINGS.values())


def changed_setting(before: tuple[Any, ...]) -> str:
    """What is no longer as it was, in words; empty where all is."""
    now = current_settings()
    if now == before:
        return ""
    return next(name for name, old, new in zip(SETTINGS, before, now, strict=True) if old != new)
