"""Run networks on the meta device, where tensors have shapes and no storage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "meta_images",
    "on_meta",
    "replaced",
    "run_on_meta",
    "shape_only",
    "uncompiled",
]

MAX_BATCH = 6
"""Largest batch size to try on a network that rejects the default one."""


class OnMeta(TorchDispatchMode):
    """Move real tensors (tables of indices) to the meta device when an operation also takes a meta tensor."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation on the meta device."""
        return run_on_meta(func, args, kwargs or {})


def run_on_meta(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run an operation with its arguments moved by `on_meta`."""
    args, kwargs = on_meta(args, kwargs)
    return func(*args, **kwargs)


def on_meta(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the arguments with every tensor and device replaced by meta ones, if any tensor is a meta tensor."""
    leaves = tree_leaves((args, dict(kwargs)))
    any_meta = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves)
    if not any_meta or not any(_is_off_meta(leaf) for leaf in leaves):
        return args, kwargs

    def to_meta(leaf: object) -> object:
        if isinstance(leaf, torch.device):
            return torch.device("meta")
        return shape_only(leaf) if isinstance(leaf, Tensor) and not leaf.is_meta else leaf

    moved: tuple[Any, Any] = tree_map(to_meta, (args, dict(kwargs)))
    return moved


def _is_off_meta(leaf: object) -> bool:
    """Return whether `leaf` is a tensor off the meta device, or a `torch.device` argument."""
    return not leaf.is_meta if isinstance(leaf, Tensor) else isinstance(leaf, torch.device)


def shape_only(tensor: Tensor) -> Tensor:
    """Return a meta tensor of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def meta_images(model: nn.Module, count: int, shape: Sequence[int]) -> Tensor:
    """Return meta images (count, *shape) in the dtype of the model's first floating-point parameter."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty((count, *shape), dtype=dtype, device="meta")


def is_compiled(module: nn.Module) -> bool:
    """Return whether torch.compile wraps the module, as `_orig_mod`."""
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module)


def uncompiled(model: nn.Module) -> nn.Module:
    """Replace compiled submodules by their originals, in place; return the model."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and is_compiled(child):
                module._modules[name] = child._orig_mod  # type: ignore[assignment]
    return model


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily replace an attribute that a class or module defines itself."""
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def isolated() -> Iterator[None]:
    """Prepare PyTorch for a forward pass on the meta device; restore the caller's random state afterwards.

    Compiled functions run eagerly, because compiling them for meta tensors is slow. `torch.autocast("meta")`, which
    PyTorch lacks, becomes `torch.autocast("cpu")`.
    """
    initialise = torch.autocast.__init__

    def initialise_on_cpu(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        initialise(self, "cpu" if str(device_type) == "meta" else device_type, *args, **kwargs)

    compiled = "torch._dynamo" in sys.modules
    with (
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        torch.random.fork_rng(devices=[]),
        replaced(torch.autocast, "__init__", initialise_on_cpu),
    ):
        yield


def failure_of(shadow: nn.Module, images: Tensor) -> Exception | None:
    """Return the error that a meta network raises on these images, or None if it accepts them."""
    try:
        with torch.no_grad(), isolated(), OnMeta():  # type: ignore[no-untyped-call]
            shadow(images)
    except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
        return error
    return None


def batches_taken(shadow: nn.Module, images: Tensor) -> str:
    """Name the batch sizes that a network accepts which fails on these images; empty if it accepts none."""
    batches = [images.new_empty((count, *images.shape[1:])) for count in range(1, MAX_BATCH + 1)]
    accepted = [len(batch) for batch in batches if failure_of(shadow, batch) is None]
    if not accepted or len(images) in accepted:
        return ""
    return (
        f". It accepts batch sizes {', '.join(map(str, accepted))} and not {len(images)}; pass a network that "
        "processes the images of a batch independently."
    )
