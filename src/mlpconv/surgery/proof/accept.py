"""What surgery does not touch: networks of which a part would be lost, or would no longer mean what it meant."""

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

# Hooks of PyTorch's own that only work out a weight before a module uses it, and what removes them.
REPARAMETRISATIONS = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def check_model(model: nn.Module) -> nn.Module:
    """The network itself (what torch.compile wraps, if it did).

    Raises UsageError for what is no module, SurgeryError, naming the module, for hooks, replaced forwards, wrappers of
    several devices, TorchScript, quantised, lazy and weightless modules.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"A {type(model).__name__} was given; a torch.nn.Module is accepted.")
    model = getattr(model, "_orig_mod", model)
    for name, module in model.named_modules():
        reason = _reason(module, whole=module is model)
        if reason:
            raise SurgeryError(f"{name or 'The network'} ({type(module).__name__}) {reason}")
    return model


def _reason(module: nn.Module, *, whole: bool) -> str:
    """Why a module, or the whole network, cannot be operated on; empty where it can."""
    kind, place = type(module).__name__, type(module).__module__
    if kind in WRAPPERS:
        return "spreads a network over devices: give the network inside, its .module."
    if is_compiled(module):
        return "is compiled by torch.compile: put its original, ._orig_mod, back in its place and compile the result."
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled TorchScript: give the nn.Module that it was made from."
    if ".quantized" in place or ".qat" in place or hasattr(module, "activation_post_process"):
        return "is quantised or about to be: operate first, quantise afterwards."
    if "forward" in vars(module) and (whole or not _chosen_among_own(module)):
        return "has a forward that was replaced on the object: subclass it instead, so that a copy computes the same."
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and nn.parameter.is_lazy(tensor):
            return "is lazy and has no parameters yet: run the model once on a real batch first."
        if tensor is not None and tensor.is_meta:
            return "has no numbers in its tensors (meta device): load its weights first."
    if any(not _is_own_hook(hook) for hooks in HOOKS for hook in getattr(module, hooks).values()):
        return "has hooks, which would be lost or run on images of ours: remove them, operate, add them again."
    return ""


def _chosen_among_own(module: nn.Module) -> bool:
    """Whether a module of its own class took one of its methods for its forward: a copy takes the copy's."""
    forward = vars(module)["forward"]
    method = getattr(forward, "__func__", None)
    own = getattr(forward, "__self__", None) is module and getattr(type(module), forward.__name__, None) is method
    return own and not any(base in vars(nn).values() for base in type(module).__mro__ if base is not nn.Module)


def _is_own_hook(hook: Any) -> bool:
    own = type(hook).__module__.startswith("torch.nn.utils.") and type(hook).__name__ in REPARAMETRISATIONS
    return own or isinstance(hook, BasePruningMethod)


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy, with shared tensors shared; SurgeryError for a model that cannot be copied."""
    memo = {id(tensor): tensor.detach().clone() for module in model.modules() for tensor in _worked_out(module)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        text = _computed(model) or first_line(error)
        raise SurgeryError(
            f"{type(model).__name__} cannot be copied, and the original stays untouched: {text}"
        ) from error


def _computed(model: nn.Module) -> str:
    """Which attribute holds a tensor with the history of its computation, and what to do; empty where none does."""
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                full = f"{place}.{name}" if place else name
                return f"{full} was computed with gradients, and PyTorch copies no such tensor: detach it."
    return ""


def removal_advice(module: nn.Module) -> str:
    """How to make a weight plain that a hook works out before each forward pass; empty where none does."""
    for hook in module._forward_pre_hooks.values():
        if _is_own_hook(hook):
            remover = REPARAMETRISATIONS.get(type(hook).__name__, "torch.nn.utils.prune.remove")
            return f"its weight is worked out before each pass: {remover} makes it plain"
    return ""


def _worked_out(module: nn.Module) -> list[Tensor]:
    """The tensors that a hook works out anew before each forward pass: PyTorch copies no result of a computation."""
    if not any(_is_own_hook(hook) for hook in module._forward_pre_hooks.values()):
        return []
    return [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]


def shared_names(model: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """The names of all parameters and buffers elsewhere in the model that share memory with this module's."""
    own = {tensor.untyped_storage()._cdata for tensor in _tensors(module)}
    inside = {id(each) for each in module.modules()}
    found = []
    for name, other in model.named_modules():
        if id(other) in inside:
            continue
        for label, tensor in (*other._parameters.items(), *other._buffers.items()):
            if tensor is not None and tensor.untyped_storage()._cdata in own:
                found.append(f"{name}.{label}" if name else label)
    return tuple(found)


def is_parametrized(module: nn.Module) -> bool:
    """Whether a tensor of the module is worked out from others: weight norm, spectral norm, pruning and the like."""
    hooked = any(_is_own_hook(hook) for hook in module._forward_pre_hooks.values())
    return hooked or parametrize.is_parametrized(module) or any(name.endswith("_orig") for name in module._parameters)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
