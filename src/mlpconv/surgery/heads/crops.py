"""A map of logits against the original on crops: where they are equal, where padding makes them differ, how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mlpconv.analysis import Profile
from mlpconv.errors import SurgeryError, first_line
from mlpconv.surgery.heads.growth import step_by_sizes
from mlpconv.surgery.proof.accept import deep_copy
from mlpconv.surgery.proof.compare import flat_tensors, isolated_eval, random_images
from mlpconv.surgery.proof.prove import EXACT, TOLERANCES, rounding_of
from mlpconv.surgery.tracing.rewritten import Rewritten

__all__ = ["Crops", "MapsOnly", "compare_crops"]

NAMED = 3
SEEN = 1e-5
"""Largest relative rounding beside which other pixels would still be seen."""
TELLING = 1e-3
"""Largest difference, as a part of that between crops, that is rounding."""


class MapsOnly(nn.Module):
    """A network's category maps as its output: (N, C, H, W) -> (N, K, h, w)."""

    def __init__(self, network: Rewritten) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, h, w)."""
        return self.network.category_maps(x)


@dataclass(frozen=True)
class Crops:
    """How one pass over a larger image compares with the original on its crops."""

    notes: tuple[str, ...]
    step: tuple[int, int] | None = None
    """Pixels from one cell of the map to the next."""
    image: tuple[int, int] | None = None
    cells: tuple[int, int] | None = None
    equal: bool = False
    absolute: float | None = None
    """The largest difference from the original on the crops."""
    relative: float | None = None
    dense_ms: float | None = None
    """One pass over the larger image."""
    crops_ms: float | None = None
    """The original on the crop of each cell, one after another."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        plain = {name: value for name, value in vars(self).items() if name != "notes"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def compare_crops(
    original: nn.Module,
    changed: Rewritten,
    input_shape: tuple[int, int, int],
    seen: Profile,
    *,
    latency: bool,
    output: str = "",
    precise: Rewritten | None = None,
) -> Crops:
    """Compare the map of a larger image with the original on all its crops of the proven size.

    `seen` is the profile of the changed network's `MapsOnly` at that size, `output` the name of the original's logits.
    Where the operation rounds new weights, `precise` is the changed network with exact ones, in float64. Raises
    SurgeryError where no larger image gives a larger map.
    """
    _, height, width = input_shape
    larger = _larger(original, changed, input_shape, seen, latency=latency)
    image, dense = larger.image, larger.dense
    ends = [(0, image.shape[2 + axis] - side) for axis, side in enumerate((height, width))]
    crops = [image[:, :, y : y + height, x : x + width] for y, x in product(*ends)]
    dense = dense[:, :, [0, -1]][..., [0, -1]]
    single, crops_ms = _run(original, crops, latency=latency, output=output)
    absolute, relative = _gap(dense, single)
    verdict = "differs"
    if relative <= TOLERANCES.get(single[0].dtype, EXACT):
        exact = _run(original, crops, torch.float64, output=output)[0]
        maps = _run(MapsOnly(precise or changed), [image], torch.float64)[0][0]
        absolute, relative = _gap(maps[:, :, [0, -1]][..., [0, -1]], exact)
        verdict = _verdict(absolute, relative, original, torch.cat(crops), torch.cat(exact))
    shown = f"{absolute:.2g}, or {relative:.2g} of the largest logit"
    words = {
        "equal": f"each equals the original on its crop ({len(crops)} crops, largest difference {shown}).",
        "alike": f"the original on the crops gives the same (to {shown}), but nearly the same for every crop, so that "
        "this says little: give trained weights.",
        "hidden": f"the original on the crops differs from it, by up to {shown}, which may be its own rounding.",
        "differs": f"the original on the crops differs from it, by up to {shown} here. {_reason(original)}",
    }
    equal = verdict == "equal"
    notes = [
        f"A larger image gives a map with one cell for each {larger.step[0]}x{larger.step[1]} pixels; {words[verdict]}"
    ]
    sizes = (image.shape[2], image.shape[3]), (larger.dense.shape[2], larger.dense.shape[3])
    return Crops(tuple(notes), larger.step, *sizes, equal, absolute, relative, larger.milliseconds, crops_ms)


def _verdict(absolute: float, relative: float, original: nn.Module, crops: Tensor, exact: Tensor) -> str:
    """What a difference in float64 means for the logits (N, K) of these crops."""
    # Logits that are nearly the same for all crops would be equal to any map of them.
    telling = absolute <= TELLING * float(exact.std(0).max())
    if relative <= EXACT:
        return "equal" if telling else "alike"
    rounding = rounding_of(original, crops)
    if relative > rounding:
        return "differs"
    return "equal" if telling and rounding <= SEEN else "hidden"


@dataclass(frozen=True)
class _Larger:
    """A larger image, and what the new network makes of it."""

    image: Tensor
    dense: Tensor
    step: tuple[int, int]
    milliseconds: float | None


def _larger(
    original: nn.Module, changed: Rewritten, input_shape: tuple[int, int, int], seen: Profile, *, latency: bool
) -> _Larger:
    """An image with one cell more along rows and columns, or else one of twice the size.

    Raises SurgeryError where neither gives a larger map.
    """
    why = "the map has one cell for an image of any size"
    channels, *sides = input_shape
    for guess in (lambda: _steps(seen), lambda: step_by_sizes(MapsOnly(changed), input_shape), lambda: (*sides,)):
        try:
            more = guess()
            if more is None:
                continue
            image = random_images(1, (channels, sides[0] + more[0], sides[1] + more[1]))
            (dense,), taken = _run(MapsOnly(changed), [image], latency=latency)
        except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
            why = f"a larger image is an error: {first_line(error)}"
            continue
        gaps = [cells - 1 for cells in dense.shape[2:]]
        if all(gaps) and not any(pixels % gap for pixels, gap in zip(more, gaps, strict=True)):
            return _Larger(image, dense, (more[0] // gaps[0], more[1] // gaps[1]), taken)
        why = f"an image of {image.shape[2]}x{image.shape[3]} gives a map of {gaps[0] + 1}x{gaps[1] + 1} cells"
    raise SurgeryError(
        f"{type(original).__name__} cannot slide over larger images: {why}. Networks whose maps grow with the image, "
        "up to the pool or flattening of the head, are accepted."
    )


def _steps(seen: Profile) -> tuple[int, int] | None:
    """Pixels from one cell of the map to the next, along rows and columns; None where the fields do not say.

    A norm after the pool hides the step along one of them.
    """
    jumps = [axis.jump for axis in seen.field or () if axis.jump is not None]
    if not jumps or any(jump < 1 or jump % 1 for jump in jumps):
        return None
    return int(jumps[0]), int(jumps[-1])


def _run(
    model: nn.Module,
    images: list[Tensor],
    dtype: torch.dtype | None = None,
    *,
    latency: bool = False,
    output: str = "",
) -> tuple[list[Tensor], float | None]:
    """The output of this name for each image, from a copy in eval mode; with `latency`, also the milliseconds."""
    copy = deep_copy(model).eval()
    weight = next((p for p in copy.parameters() if p.is_floating_point()), torch.empty(0))
    if dtype is not None:
        copy.to(dtype)
    batches = [image.to(weight.device, dtype or weight.dtype) for image in images]
    with isolated_eval(copy):
        if latency and len(batches) == 1:
            copy(batches[0])  # a size that no pass has prepared for; the crops have the size of the proof
        start = time.perf_counter()
        found = [dict(flat_tensors(copy(batch)))[output] for batch in batches]
    return found, (time.perf_counter() - start) * 1e3 if latency else None


def _gap(dense: Tensor, single: list[Tensor]) -> tuple[float, float]:
    """Largest difference of the map from the logits of each crop, in numbers and as a part of the largest."""
    logits = torch.cat(single).double()
    absolute = float((dense[0].flatten(1).T.double() - logits).abs().max())
    scale = float(logits.abs().max())
    return absolute, absolute / scale if scale else float(absolute > 0)


def _reason(original: nn.Module) -> str:
    """Why a crop is another thing than a window of a larger image."""
    padded = [name for name, module in original.named_modules() if _pads(module)]
    if not padded:
        return "Some step sees more of the image than the crop (a norm, gate or attention), or pads as a function."
    listed = ", ".join(padded[:NAMED]) + (f" and {len(padded) - NAMED} more" if len(padded) > NAMED else "")
    return f"{listed} pad: at the border of a crop they see zeros where the larger image has pixels."


def _pads(module: nn.Module) -> bool:
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in getattr(module, "kernel_size", ()))
    return any(padding) if isinstance(padding, tuple) else bool(padding)
