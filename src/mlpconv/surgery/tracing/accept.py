"""Reject networks of which surgery would lose or change a part; copy the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from mlpconv.analysis.meta import is_compiled
from mlpconv.errors import SurgeryError, UsageError, first_line

__all__ = ["check_model", "deep_copy", "is_parametrized", "removal_advice", "shared_names"]

# PyTorch's hooks that compute a weight before each forward pass, and the function that removes them.
REPARAMETRISATIONS = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def check_model(model: nn.Module) -> nn.Module:
    """Return the network, without the wrapper of torch.compile, if surgery supports it.

    Raises UsageError if it is no module, and SurgeryError, with the module's name, for hooks, replaced forward methods,
    multi-device wrappers, TorchScript, and quantised, lazy and meta modules.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"Got a {type(model).__name__}; pass a torch.nn.Module.")
    model = getattr(model, "_orig_mod", model)
    for name, module in model.named_modules():
        reason = _reason(module, whole=module is model)
        if reason:
            raise SurgeryError(f"{name or 'The network'} ({type(module).__name__}) {reason}")
    return model


def _reason(module: nn.Module, *, whole: bool) -> str:
    """Return why surgery does not support a module, or the whole network; empty if it does."""
    kind, place = type(module).__name__, type(module).__module__
    if kind in WRAPPERS:
        return "distributes a network over devices: pass the wrapped network, its .module."
    if is_compiled(module):
        return "is compiled by torch.compile: restore the original, ._orig_mod, and compile the result of the surgery."
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled TorchScript: pass the original nn.Module."
    if ".quantized" in place or ".qat" in place or hasattr(module, "activation_post_process"):
        return "is quantised or prepared for quantisation: quantise after the surgery."
    if "forward" in vars(module) and (whole or not _chosen_among_own(module)):
        return (
            "has a forward that was replaced on the instance: define a subclass instead, so that a copy is equivalent."
        )
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and nn.parameter.is_lazy(tensor):
            return "is lazy and has no parameters yet: first run the model on a real batch."
        if tensor is not None and tensor.is_meta:
            return "is on the meta device and has no weights: load its weights first."
    if any(not _is_own_hook(hook) for hooks in HOOKS for hook in getattr(module, hooks).values()):
        return "has hooks, which would be lost or run on test images: remove them and add them after the surgery."
    return ""


def _chosen_among_own(module: nn.Module) -> bool:
    """Return whether a module of a custom class uses one of its own methods as forward, which a copy rebinds."""
    forward = vars(module)["forward"]
    method = getattr(forward, "__func__", None)
    own = getattr(forward, "__self__", None) is module and getattr(type(module), forward.__name__, None) is method
    return own and not any(base in vars(nn).values() for base in type(module).__mro__ if base is not nn.Module)


def _is_own_hook(hook: Any) -> bool:
    own = type(hook).__module__.startswith("torch.nn.utils.") and type(hook).__name__ in REPARAMETRISATIONS
    return own or isinstance(hook, BasePruningMethod)


def deep_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy that preserves tensor sharing; raise SurgeryError for a model that cannot be copied."""
    memo = {id(tensor): tensor.detach().clone() for module in model.modules() for tensor in _hook_results(module)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        text = _computed(model) or first_line(error)
        raise SurgeryError(
            f"{type(model).__name__} cannot be copied, and surgery never changes the original: {text}"
        ) from error


def _computed(model: nn.Module) -> str:
    """Name an attribute that holds a tensor with autograd history, and the remedy; empty if there is none."""
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                full = f"{place}.{name}" if place else name
                return f"{full} was computed with gradients, and PyTorch cannot copy such a tensor: detach it."
    return ""


def removal_advice(module: nn.Module) -> str:
    """Return how to remove a hook that computes a weight before each forward pass; empty if there is none."""
    for hook in module._forward_pre_hooks.values():
        if _is_own_hook(hook):
            remover = REPARAMETRISATIONS.get(type(hook).__name__, "torch.nn.utils.prune.remove")
            return f"a hook computes its weight before each forward pass: call {remover}"
    return ""


def _hook_results(module: nn.Module) -> list[Tensor]:
    """Return tensors that a hook recomputes before each forward pass, which deepcopy rejects."""
    if not any(_is_own_hook(hook) for hook in module._forward_pre_hooks.values()):
        return []
    return [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]


def shared_names(model: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """Return the names of parameters and buffers elsewhere in the model that share memory with this module's."""
    storages = {tensor.untyped_storage()._cdata for tensor in _tensors(module)}
    inside = {id(child) for child in module.modules()}
    names = []
    for name, other in model.named_modules():
        if id(other) in inside:
            continue
        for label, tensor in (*other._parameters.items(), *other._buffers.items()):
            if tensor is not None and tensor.untyped_storage()._cdata in storages:
                names.append(f"{name}.{label}" if name else label)
    return tuple(names)


def is_parametrized(module: nn.Module) -> bool:
    """Return whether a tensor of the module is computed from others: weight norm, spectral norm, pruning."""
    hooked = any(_is_own_hook(hook) for hook in module._forward_pre_hooks.values())
    return hooked or parametrize.is_parametrized(module) or any(name.endswith("_orig") for name in module._parameters)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
