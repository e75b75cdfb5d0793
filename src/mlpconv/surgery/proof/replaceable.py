"""Find modules that cannot be replaced, because the forward pass also uses their class, weight or attributes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlpconv.surgery.proof.compare import flat_tensors, isolated_eval
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["find_irreplaceable"]

ROUNDING = 1e-3
"""Relative difference between two runs that counts as rounding."""


def find_irreplaceable(model: nn.Module, names: list[str], image: Tensor) -> list[str]:
    """Return the names of modules that cannot be replaced, because the forward pass uses more than their output.

    The list is empty if the network itself fails on the image. The model is run on the image (N, C, H, W), so it must
    be a copy in the desired mode.
    """
    try:
        with isolated_eval(model):
            expected = list(flat_tensors(model(image)))
    except Exception:  # noqa: BLE001  (a forward pass may raise anything)
        return []
    if _same_when_wrapped(model, names, image, expected):
        return []
    return [name for name in names if not _same_when_wrapped(model, [name], image, expected)]


def _same_when_wrapped(
    model: nn.Module, names: Iterable[str], image: Tensor, expected: list[tuple[str, Tensor]]
) -> bool:
    """Return whether the output stays the same if each of these modules is temporarily wrapped in an nn.Sequential."""
    modules = {name: model.get_submodule(name) for name in names}
    for name, module in modules.items():
        replace_module(model, name, nn.Sequential(module))
    try:
        with isolated_eval(model):
            output = list(flat_tensors(model(image)))
    except Exception:  # noqa: BLE001  (a forward pass may raise anything)
        return False
    finally:
        for name, module in modules.items():
            replace_module(model, name, module)
    return len(output) == len(expected) and all(
        name == expected_name and _close(a, b) for (name, a), (expected_name, b) in zip(output, expected, strict=True)
    )


def _close(output: Tensor, expected: Tensor) -> bool:
    """Return whether two outputs agree up to rounding (a GPU may sum in any order); NaN equals NaN."""
    if output.shape != expected.shape:
        return False
    output, expected = (tensor if tensor.is_complex() else tensor.double() for tensor in (output, expected))
    scale = float(expected.abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
    return torch.allclose(output, expected, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)
