"""Modules of which a forward pass wants more than what they make: an attribute, their class, their weight."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlpconv.surgery.proof.compare import flat_tensors, isolated_eval
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["find_irreplaceable"]

ROUNDING = 1e-3
"""Differences of two runs, as a part of the largest number, that come from rounding."""


def find_irreplaceable(model: nn.Module, names: list[str], image: Tensor) -> list[str]:
    """Those of the modules in whose place no other can stand, as the forward pass asks them for more than an output.

    None where the network itself fails on the image.

    The model is run on the image (N, C, H, W), so it must be a copy in the mode that is meant.
    """
    try:
        with isolated_eval(model):
            wanted = list(flat_tensors(model(image)))
    except Exception:  # noqa: BLE001  (a network that fails on the image fails with any modules)
        return []
    if _computes_with_chains(model, names, image, wanted):
        return []
    return [name for name in names if not _computes_with_chains(model, [name], image, wanted)]


def _computes_with_chains(
    model: nn.Module, names: Iterable[str], image: Tensor, wanted: list[tuple[str, Tensor]]
) -> bool:
    """Whether the network makes the same when each of these modules is alone in an nn.Sequential; it is put back."""
    modules = {name: model.get_submodule(name) for name in names}
    for name, module in modules.items():
        replace_module(model, name, nn.Sequential(module))
    try:
        with isolated_eval(model):
            made = list(flat_tensors(model(image)))
    except Exception:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
        return False
    finally:
        for name, module in modules.items():
            replace_module(model, name, module)
    return len(made) == len(wanted) and all(
        name == other and _alike(a, b) for (name, a), (other, b) in zip(made, wanted, strict=True)
    )


def _alike(made: Tensor, wanted: Tensor) -> bool:
    """Whether two runs of one network made these: a GPU may add up in another order, and NaN is what it was."""
    if made.shape != wanted.shape:
        return False
    made, wanted = (each if each.is_complex() else each.double() for each in (made, wanted))
    scale = float(wanted.abs().nan_to_num(0.0, 0.0, 0.0).max()) if wanted.numel() else 0.0
    return torch.allclose(made, wanted, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)
