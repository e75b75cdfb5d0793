"""Networks and tensors that have shapes and no storage, on the meta device: how they are run, and what they take."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "OnMeta",
    "batches_taken",
    "failure_of",
    "is_compiled",
    "isolated",
    "on_meta",
    "replaced",
    "shape_only",
    "uncompiled",
]

MOST_TRIED = 6
"""Images in the largest batch that is tried where a network does not take the usual one."""


class OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tables of indices have numbers; where they meet tensors without storage they lose them."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        args, kwargs = on_meta(args, kwargs or {})
        return func(*args, **kwargs)


def on_meta(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The arguments with every tensor, and every request for a device, on the meta device if any tensor is there."""
    leaves = tree_leaves((args, dict(kwargs)))
    there = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves)
    if not there or not any(_is_elsewhere(leaf) for leaf in leaves):
        return args, kwargs

    def bare(leaf: object) -> object:
        if isinstance(leaf, torch.device):
            return torch.device("meta")
        return shape_only(leaf) if isinstance(leaf, Tensor) and not leaf.is_meta else leaf

    moved: tuple[Any, Any] = tree_map(bare, (args, dict(kwargs)))
    return moved


def _is_elsewhere(leaf: object) -> bool:
    """Whether it is a tensor or a request for a device that is not the meta device."""
    return not leaf.is_meta if isinstance(leaf, Tensor) else isinstance(leaf, torch.device)


def shape_only(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and dtype without storage."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what torch.compile made of another, its `_orig_mod`."""
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module)


def uncompiled(model: nn.Module) -> nn.Module:
    """In place: the original modules where compiled ones were."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and is_compiled(child):
                module._modules[name] = child._orig_mod  # type: ignore[assignment]
    return model


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put another value in the place of an attribute that a class or module has of its own, for a while."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def isolated() -> Iterator[None]:
    """Run a forward pass without storage so that it stays cheap and the caller keeps its random numbers.

    Functions of torch.compile run as they were written, since compiling for tensors without storage takes long.
    `torch.autocast(x.device.type)` is that of the CPU, since there is none for the meta device.
    """
    begin = torch.autocast.__init__

    def begun(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if str(device_type) == "meta" else device_type, *args, **kwargs)

    compiled = "torch._dynamo" in sys.modules
    with (
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        torch.random.fork_rng(devices=[]),
        replaced(torch.autocast, "__init__", begun),
    ):
        yield


def failure_of(shadow: nn.Module, images: Tensor) -> Exception | None:
    """What a network without storage raises on these images; None where it takes them."""
    try:
        with torch.no_grad(), isolated(), OnMeta():  # type: ignore[no-untyped-call]
            shadow(images)
    except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
        return error
    return None


def batches_taken(shadow: nn.Module, images: Tensor) -> str:
    """Say which batches a network takes that fails on these images; empty where it takes none."""
    batches = [images.new_empty((count, *images.shape[1:])) for count in range(1, MOST_TRIED + 1)]
    taken = [len(batch) for batch in batches if failure_of(shadow, batch) is None]
    if not taken or len(images) in taken:
        return ""
    return (
        f". It takes batches of {', '.join(map(str, taken))} images and not of {len(images)}; a network that works "
        "on each image of a batch by itself is accepted."
    )
