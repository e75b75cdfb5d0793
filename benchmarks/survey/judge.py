"""Whether two networks compute the same, measured without any help of mlpconv's own proof."""

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
"""Largest difference, as a part of the largest output, that is rounding."""
ROUNDED = 1e-3
"""The same in float64 for a network that computes in float32 on its way."""
OWN = 10
"""How many times further from the original a result may lie than rounding moves the original itself."""
SEEN = {"float32": 0.1, "float64": 1e-6}
"""Rounding that moves a network further than this hides errors: no evidence."""
BLIND = 1e-6
"""Outputs for different images that differ by less than this part say nothing."""
SEED, COUNT = 20240229, 3


@dataclass(frozen=True)
class Judgement:
    """What became of an operation on a network."""

    word: str
    """exact, wrong, refused, crashed, undecided or not run."""
    float32: float | None = None
    float64: float | None = None
    why: str = ""
    """The reason for a refusal, in the operation's own words; what is wrong; or a remark."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def images_of(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Random images that no operation has seen: (N, C, H, W)."""
    source = torch.Generator().manual_seed(SEED)
    return torch.randn((COUNT, *shape), generator=source, dtype=torch.float64).to(dtype)


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Every tensor that the network returns, in float64."""
    with torch.no_grad():
        found = model.eval()(images)
    leaves = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    return [leaf.double() for leaf in leaves]


def gap(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest difference as a part of the largest output; infinite for other shapes, other counts and NaN."""
    if [each.shape for each in before] != [each.shape for each in after] or not before:
        return float("inf")
    numbers = [each.isfinite().all() for each in (*before, *after)]
    if not all(numbers):
        return float("inf")
    largest = max(float(each.abs().max()) for each in before)
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    return difference / largest if largest else float(difference > 0)


def judge(
    pairs: dict[str, tuple[nn.Module, nn.Module]], shape: tuple[int, int, int], remark: str = "", *, check: Any = None
) -> Judgement:
    """The word on a result: the original and the changed network in each number format, float32 and float64.

    `check` may look at the changed network too: it takes original, changed and images, and gives a difference.
    """
    found: dict[str, float] = {}
    limits = dict(LIMITS)
    originals: list[list[Tensor]] = []
    for dtype, (original, changed) in pairs.items():
        images = images_of(shape, getattr(torch, dtype))
        before = outputs(original, images)
        originals.append(before)
        found[dtype] = gap(before, outputs(changed, images))
        if check is not None:
            found[dtype] = max(found[dtype], check(changed, images, before))
        if dtype == "float64" and found[dtype] > limits[dtype] and rounds(original, images[:1]):
            limits[dtype] = ROUNDED
            remark = "; ".join(filter(None, (remark, "the network itself computes in float32 on its way")))
        if told_apart(before) < BLIND:
            return Judgement("undecided", **found, why="its outputs are the same for all images")
    if limits["float64"] < found.get("float64", 0.0):
        own = shaking(pairs["float64"][0], images_of(shape, torch.float64))
        if own > SEEN["float64"]:
            return Judgement("undecided", **found, why=f"rounding alone changes it by {own:.0e} in float64")
        limits["float64"] = max(limits["float64"], OWN * own)
        remark = "; ".join(filter(None, (remark, f"rounding alone changes the network itself by {own:.0e} in float64")))
    if found.get("float32", 0.0) > limits["float32"]:
        own = gap(originals[-1], originals[0])
        if own > SEEN["float32"]:
            return Judgement("undecided", **found, why=f"rounding alone changes it by {own:.0e} in float32")
        limits["float32"] = max(limits["float32"], OWN * own)
        remark = "; ".join(filter(None, (remark, f"rounding alone changes the network itself by {own:.0e} in float32")))
    bad = [dtype for dtype, value in found.items() if not value <= limits[dtype]]
    if bad:
        return Judgement("wrong", **found, why=f"differs in {' and '.join(bad)}")
    return Judgement("exact", **found, why=remark)


def shaking(model: nn.Module, images: Tensor) -> float:
    """How far a network in float64 moves when each of its numbers does by one rounding."""
    moved = copy.deepcopy(model)
    source = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for tensor in (each for each in (*moved.parameters(), *moved.buffers()) if each.is_floating_point()):
            up = torch.rand(tensor.shape, generator=source) < 0.5
            tensor.copy_(torch.nextafter(tensor, torch.where(up, torch.inf, -torch.inf).to(tensor.dtype)))
    return gap(outputs(model, images), outputs(moved, images))


def told_apart(found: Sequence[Tensor]) -> float:
    """How much the outputs for several images differ, as a part of the largest."""
    spans = [float((each.amax(0) - each.amin(0)).max() / each.abs().max()) for each in found if bool(each.any())]
    return max(spans, default=0.0)


class _Rounding(TorchDispatchMode):
    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.seen = self.seen or any(leaf.dtype in (torch.float32, torch.bfloat16) for leaf in leaves)
        return result


def rounds(model: nn.Module, image: Tensor) -> bool:
    """Whether a network in float64 makes float32 of something on its way."""
    mode = _Rounding()
    with mode, torch.no_grad():
        copy.deepcopy(model).eval()(image)
    return mode.seen
