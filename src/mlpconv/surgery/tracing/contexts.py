"""Detect PyTorch settings that a forward pass changes while it runs; a graph cannot hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = ["changed_setting", "current_settings"]

DEVICES = ("cpu", "cuda", "mps", "xpu")


def _autocast() -> Any:
    """Return the number of autocast contexts, including disabled ones, and the dtype on each device."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth, *(torch.get_autocast_dtype(name) if torch.is_autocast_enabled(name) else None for name in DEVICES)


def _attention() -> Any:
    """Return which kernels scaled dot product attention may use."""
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
"""Description of each setting, and a function that reads it."""


def current_settings() -> tuple[Any, ...]:
    """Return the current value of every setting."""
    return tuple(read() for read in SETTINGS.values())


def changed_setting(reference: tuple[Any, ...]) -> str:
    """Return the description of the first setting that differs from the reference; empty if none does."""
    values = zip(SETTINGS, reference, current_settings(), strict=True)
    return next((name for name, old, new in values if old != new), "")
