"""Verify that two networks are equivalent, or report why that cannot be verified.

Rounding can mask an error or look like one. In float64, exact surgery differs by about 1e-12 and an error by about as
much as in float32, so float64 decides. A network that amplifies rounding is compared with its own rounding error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlpconv.errors import SurgeryError
from mlpconv.surgery.proof.compare import (
    SEED,
    Difference,
    ImageBatch,
    Proof,
    compare,
    comparison_batches,
    difference_of,
    isolated_eval,
    named_outputs,
)
from mlpconv.surgery.tracing.accept import deep_copy

__all__ = ["EXACT", "TOLERANCES", "prove", "rounding_of"]

EXACT = 1e-9
"""Largest relative difference in float64 that counts as rounding."""
TOLERANCES = {torch.float64: EXACT, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""The same for each dtype; depth amplifies rounding."""
ROUNDINGS = 10
"""Differences up to this multiple of the original's own rounding error count as rounding."""
PROVABLE = 1e-6
"""Largest rounding error of a network in float64 at which an error can still be detected."""


def prove(
    original: nn.Module,
    changed: nn.Module,
    input_shape: tuple[int, int, int],
    images: Tensor | None = None,
    tolerance: float | None = None,
    precise: nn.Module | None = None,
) -> Proof:
    """Verify that two networks are equivalent, on random images of (C, H, W) and on `images`.

    `images` is (N, C, H, W), preprocessed. `tolerance` is the largest relative difference in the network's own dtype
    (default for float32: 1e-3); in float64 it is 1e-9, unless the network computes in lower precision internally.
    Without a tolerance, up to ten times the original's own rounding error is accepted too. If surgery rounds new
    weights to the network's dtype, `precise` is the result of the same surgery in float64.
    Raises SurgeryError, with the difference, if the networks are not equivalent, or if rounding hides whether they are.
    """
    proof = compare(original, changed, input_shape, images, precise)
    notes = list(proof.notes)
    batches, few = comparison_batches(input_shape, images)
    for difference, batch in zip(proof.differences, [*batches, *few], strict=False):  # float64 may be missing
        own = getattr(torch, difference.dtype)
        allowed = EXACT if own is torch.float64 else tolerance if tolerance is not None else TOLERANCES.get(own, EXACT)
        if difference.relative <= allowed:
            continue
        compare_with_rounding = own is torch.float64 or (tolerance is None and proof.worst("float64") is not None)
        note = _explain_by_rounding(difference, original, batch) if compare_with_rounding else None
        if note is None:
            raise SurgeryError(
                f"The changed {type(original).__name__} is not equivalent to the original ({difference}; rounding is "
                f"at most {allowed:g} relative), so it is not returned. This is a bug: please report the network."
            )
        notes.append(note)
    return replace(proof, notes=tuple(dict.fromkeys(notes)))


def _explain_by_rounding(difference: Difference, model: nn.Module, batch: ImageBatch) -> str | None:
    """Return a note if a difference is rounding, else None; raise SurgeryError if rounding would hide any error."""
    own = getattr(torch, difference.dtype)
    if own is torch.float64 and difference.relative <= TOLERANCES[torch.float32] and _downcasts(model, batch[1][:1]):
        return "The network itself computes in lower precision than float64, so float64 is no stricter than float32."
    rounding = _rounding(model, batch, own)
    if difference.relative > ROUNDINGS * rounding:
        return None
    alone = f"Rounding in {difference.dtype} alone moves the original's outputs by {rounding:.1g} relative"
    if own is torch.float64 and rounding > PROVABLE:
        raise SurgeryError(
            f"{alone}, so it cannot be shown that the changed {type(model).__name__} computes the same, and it is not "
            "returned. Layers with untrained weights can amplify activations like that: pass trained weights."
        )
    return f"{alone}."


def rounding_of(model: nn.Module, images: Tensor) -> float:
    """Return the largest relative difference in float64 that counts as rounding, for these images (N, C, H, W)."""
    own = torch.float32 if _downcasts(model, images[:1]) else torch.float64
    return max(EXACT, ROUNDINGS * _rounding(model, ("given", images), own))


def _rounding(model: nn.Module, batch: ImageBatch, own: torch.dtype) -> float:
    """Return the rounding error of the outputs for these images, relative to the largest output.

    The reference is float64 or, in float64, the network with each weight perturbed by one rounding error. The images
    matter: another one may be a thousand times as sensitive.
    """
    copy = _perturbed(model) if own is torch.float64 else deep_copy(model)
    (rounded,), (exact,) = named_outputs(copy, [batch], own), named_outputs(deep_copy(model), [batch], torch.float64)
    return difference_of(exact, rounded, batch, own).relative


def _perturbed(model: nn.Module) -> nn.Module:
    """Return a float64 copy with every weight one rounding error larger or smaller."""
    copy = deep_copy(model).double()
    generator = torch.Generator().manual_seed(SEED)
    step = torch.finfo(torch.float64).eps
    with torch.no_grad():
        for tensor in (weight for weight in (*copy.parameters(), *copy.buffers()) if weight.is_floating_point()):
            signs = torch.randint(0, 2, tensor.shape, generator=generator).mul_(2).sub_(1)
            tensor.mul_(1 + step * signs.to(tensor.device, torch.float64))
    return copy


class _Downcasts(TorchDispatchMode):
    """Detect results in lower precision than float64."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in (torch.float32, torch.float16, torch.bfloat16):
            self.seen = True
        return result


def _downcasts(model: nn.Module, image: Tensor) -> bool:
    """Return whether the network, in float64, casts to lower precision internally."""
    copy = deep_copy(model).eval().double()
    device = next((p.device for p in copy.parameters()), torch.device("cpu"))
    mode = _Downcasts()  # type: ignore[no-untyped-call]
    with isolated_eval(copy), mode:
        copy(image.to(device, torch.float64))
    return mode.seen
