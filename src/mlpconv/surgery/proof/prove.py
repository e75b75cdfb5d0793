"""Whether two networks compute the same, or why that cannot be said.

Rounding hides errors and looks like one. In float64 an exact operation differs by 1e-12 or so and a wrong one by about
as much as in float32, so float64 decides. A network that makes rounding larger itself is measured against that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlpconv.errors import SurgeryError
from mlpconv.surgery.proof.accept import deep_copy
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

__all__ = ["EXACT", "TOLERANCES", "prove", "rounding_of"]

EXACT = 1e-9
"""Largest relative difference in float64 that is called rounding."""
TOLERANCES = {torch.float64: EXACT, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""The same in the network's own number format, where rounding can be amplified by depth."""
ROUNDINGS = 10
"""So many times the original's own rounding is rounding, where that is more."""
PROVABLE = 1e-6
"""Largest of a network's own roundings in float64 beside which an error would still be seen."""


def prove(
    original: nn.Module,
    changed: nn.Module,
    input_shape: tuple[int, int, int],
    images: Tensor | None = None,
    tolerance: float | None = None,
    precise: nn.Module | None = None,
) -> Proof:
    """Compare two networks that are promised to be equal, on random images of (C, H, W) and on those given.

    `images` is (N, C, H, W), as the network takes them. `tolerance` is the largest relative difference in the network's
    own number format (1e-3 for float32 if not given); in float64 it is 1e-9, unless the network itself computes in
    less. Ten times what the original itself loses to rounding is rounding, too, where no tolerance is given. Where the
    operation rounds new weights to the network's format, `precise` is what it makes of the original in float64.
    Raises SurgeryError, with the figure, where the promise is not kept, or where rounding hides whether it is.
    """
    found = compare(original, changed, input_shape, images, precise)
    notes = list(found.notes)
    batches, few = comparison_batches(input_shape, images)
    for each, batch in zip(found.differences, [*batches, *few], strict=False):  # no float64 where it is not needed
        own = getattr(torch, each.dtype)
        allowed = EXACT if own is torch.float64 else tolerance if tolerance is not None else TOLERANCES.get(own, EXACT)
        if each.relative <= allowed:
            continue
        judged = own is torch.float64 or (tolerance is None and found.worst("float64") is not None)
        note = _excuse(each, original, batch) if judged else None
        if note is None:
            raise SurgeryError(
                f"The changed {type(original).__name__} was to compute the same and does not ({each}; at most "
                f"{allowed:g} relative is rounding), so it is not returned. This is a bug: please report the network."
            )
        notes.append(note)
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def _excuse(found: Difference, model: nn.Module, batch: ImageBatch) -> str | None:
    """Why a difference is rounding after all; SurgeryError where rounding leaves nothing to be seen; else None."""
    own = getattr(torch, found.dtype)
    if own is torch.float64 and found.relative <= TOLERANCES[torch.float32] and _loses(model, batch[1][:1]):
        return "The network itself computes in less than float64, so float64 shows no more than float32."
    rounding = _rounding(model, batch, own)
    if found.relative > ROUNDINGS * rounding:
        return None
    alone = f"Rounding in {found.dtype} alone moves the original's outputs by {rounding:.1g} relative"
    if own is torch.float64 and rounding > PROVABLE:
        raise SurgeryError(
            f"{alone}, so it cannot be shown that the changed {type(model).__name__} computes the same, and it is not "
            "returned. A network whose layers make every number larger does that: give trained weights."
        )
    return f"{alone}."


def rounding_of(model: nn.Module, images: Tensor) -> float:
    """The largest relative difference in float64 that may be rounding, for these images (N, C, H, W)."""
    own = torch.float32 if _loses(model, images[:1]) else torch.float64
    return max(EXACT, ROUNDINGS * _rounding(model, ("given", images), own))


def _rounding(model: nn.Module, batch: ImageBatch, own: torch.dtype) -> float:
    """What rounding does to the outputs for these images, relative to the largest number.

    Measured against float64, or, in float64, against the same network with each of its numbers moved by one rounding.
    Another image may be a thousand times as sensitive, and says nothing about these.
    """
    other = _moved(model) if own is torch.float64 else deep_copy(model)
    (rounded,), (exact,) = named_outputs(other, [batch], own), named_outputs(deep_copy(model), [batch], torch.float64)
    return difference_of(exact, rounded, batch, own).relative


def _moved(model: nn.Module) -> nn.Module:
    """A copy in float64 with every number one rounding larger or smaller."""
    made = deep_copy(model).double()
    source = torch.Generator().manual_seed(SEED)
    step = torch.finfo(torch.float64).eps
    with torch.no_grad():
        for tensor in (each for each in (*made.parameters(), *made.buffers()) if each.is_floating_point()):
            signs = torch.randint(0, 2, tensor.shape, generator=source).mul_(2).sub_(1)
            tensor.mul_(1 + step * signs.to(tensor.device, torch.float64))
    return made


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything is rounded to fewer digits."""

    lost = False

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in (torch.float32, torch.float16, torch.bfloat16):
            self.lost = True
        return result


def _loses(model: nn.Module, image: Tensor) -> bool:
    """Whether the network, in float64, casts to fewer digits on its way."""
    copy = deep_copy(model).eval().double()
    device = next((p.device for p in copy.parameters()), torch.device("cpu"))
    mode = _Precision()  # type: ignore[no-untyped-call]
    with isolated_eval(copy), mode:
        copy(image.to(device, torch.float64))
    return mode.lost
