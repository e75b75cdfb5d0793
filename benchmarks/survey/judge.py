"""Compare the outputs of two networks, independently of mlpconv's own verification."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LIMITS", "Judgement", "gap", "images_of", "judge", "rounds"]

LIMITS = {"float32": 1e-3, "float64": 1e-9}
"""Largest difference, relative to the largest output, that counts as rounding."""
ROUNDED = 1e-3
"""The same in float64 for a network that computes a part in float32."""
OWN = 10
"""Accepted difference as a multiple of the effect of rounding on the original."""
SEEN = {"float32": 0.1, "float64": 1e-6}
"""Larger effects of rounding on the original would hide errors: no evidence."""
BLIND = 1e-6
"""Outputs that differ less between images, relative to the largest, are no evidence."""
SEED, COUNT = 20240229, 3


@dataclass(frozen=True)
class Judgement:
    """Outcome of one operation on one network."""

    word: str
    """exact, wrong, refused, crashed, undecided or not run."""
    float32: float | None = None
    float64: float | None = None
    why: str = ""
    """The operation's error message, what is wrong, or a remark."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return asdict(self)


def images_of(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Return random images (N, C, H, W) that no operation uses itself."""
    source = torch.Generator().manual_seed(SEED)
    return torch.randn((COUNT, *shape), generator=source, dtype=torch.float64).to(dtype)


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return all output tensors of the network, in float64."""
    with torch.no_grad():
        result = model.eval()(images)
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    return [leaf.double() for leaf in leaves]


def gap(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference relative to the largest output; infinite for different shapes or NaN."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after] or not before:
        return float("inf")
    if not all(tensor.isfinite().all() for tensor in (*before, *after)):
        return float("inf")
    largest = max(float(tensor.abs().max()) for tensor in before)
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    return difference / largest if largest else float(difference > 0)


def judge(
    pairs: dict[str, tuple[nn.Module, nn.Module]], shape: tuple[int, int, int], remark: str = "", *, check: Any = None
) -> Judgement:
    """Compare the original and the changed network in float32 and float64.

    `check(changed, images, outputs)` may return the difference of another output of the changed network.
    """
    gaps: dict[str, float] = {}
    limits = dict(LIMITS)
    originals: list[list[Tensor]] = []
    for dtype, (original, changed) in pairs.items():
        images = images_of(shape, getattr(torch, dtype))
        before = outputs(original, images)
        originals.append(before)
        gaps[dtype] = gap(before, outputs(changed, images))
        if check is not None:
            gaps[dtype] = max(gaps[dtype], check(changed, images, before))
        if dtype == "float64" and gaps[dtype] > limits[dtype] and rounds(original, images[:1]):
            limits[dtype] = ROUNDED
            remark = "; ".join(filter(None, (remark, "the network computes a part in float32")))
        if spread_over_images(before) < BLIND:
            return Judgement("undecided", **gaps, why="its outputs are the same for all images")
    if limits["float64"] < gaps.get("float64", 0.0):
        own = rounding_effect(pairs["float64"][0], images_of(shape, torch.float64))
        if own > SEEN["float64"]:
            return Judgement("undecided", **gaps, why=f"rounding alone changes it by {own:.0e} in float64")
        limits["float64"] = max(limits["float64"], OWN * own)
        remark = "; ".join(filter(None, (remark, f"rounding alone changes the network itself by {own:.0e} in float64")))
    if gaps.get("float32", 0.0) > limits["float32"]:
        own = gap(originals[-1], originals[0])
        if own > SEEN["float32"]:
            return Judgement("undecided", **gaps, why=f"rounding alone changes it by {own:.0e} in float32")
        limits["float32"] = max(limits["float32"], OWN * own)
        remark = "; ".join(filter(None, (remark, f"rounding alone changes the network itself by {own:.0e} in float32")))
    bad = [dtype for dtype, value in gaps.items() if not value <= limits[dtype]]
    if bad:
        return Judgement("wrong", **gaps, why=f"differs in {' and '.join(bad)}")
    return Judgement("exact", **gaps, why=remark)


def rounding_effect(model: nn.Module, images: Tensor) -> float:
    """Return the change of a float64 network's outputs when each weight moves by one unit of rounding."""
    moved = copy.deepcopy(model)
    source = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for tensor in filter(Tensor.is_floating_point, (*moved.parameters(), *moved.buffers())):
            up = torch.rand(tensor.shape, generator=source) < 0.5
            tensor.copy_(torch.nextafter(tensor, torch.where(up, torch.inf, -torch.inf).to(tensor.dtype)))
    return gap(outputs(model, images), outputs(moved, images))


def spread_over_images(tensors: Sequence[Tensor]) -> float:
    """Return how much the outputs differ between images, relative to the largest output."""
    nonzero = [tensor for tensor in tensors if bool(tensor.any())]
    spans = [float((tensor.amax(0) - tensor.amin(0)).max() / tensor.abs().max()) for tensor in nonzero]
    return max(spans, default=0.0)


class _Rounding(TorchDispatchMode):
    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.seen = self.seen or any(leaf.dtype in (torch.float32, torch.bfloat16) for leaf in leaves)
        return result


def rounds(model: nn.Module, image: Tensor) -> bool:
    """Return whether a float64 network computes a part in float32 or bfloat16."""
    mode = _Rounding()  # type: ignore[no-untyped-call]
    with mode, torch.no_grad():
        copy.deepcopy(model).eval()(image)
    return mode.seen
