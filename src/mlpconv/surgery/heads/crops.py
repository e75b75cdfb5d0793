"""Compare a map of logits with the original on crops: the difference, the effect of padding, and the speed."""

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
from mlpconv.surgery.proof.compare import flat_tensors, isolated_eval, random_images
from mlpconv.surgery.proof.prove import EXACT, TOLERANCES, rounding_of
from mlpconv.surgery.tracing.accept import deep_copy
from mlpconv.surgery.tracing.rewritten import Rewritten

__all__ = ["Crops", "MapsOnly", "compare_crops"]

MAX_LISTED = 3
MAX_ROUNDING = 1e-5
"""Largest relative rounding error at which an effect of other pixels would still be visible."""
MAX_SHARE = 1e-3
"""Largest difference, relative to the standard deviation between crops, that counts as equal."""


class MapsOnly(nn.Module):
    """A network that returns its category maps: (N, C, H, W) -> (N, K, h, w)."""

    def __init__(self, network: Rewritten) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the category maps: (N, C, H, W) -> (N, K, h, w)."""
        return self.network.category_maps(x)


@dataclass(frozen=True)
class Crops:
    """Comparison of one pass over a larger image with the original on its crops."""

    notes: tuple[str, ...]
    step: tuple[int, int] | None = None
    """Stride of the map in pixels."""
    image: tuple[int, int] | None = None
    cells: tuple[int, int] | None = None
    equal: bool = False
    absolute: float | None = None
    """Largest difference from the original on the crops."""
    relative: float | None = None
    dense_ms: float | None = None
    """Latency of one pass over the larger image."""
    crops_ms: float | None = None
    """Latency of the original on the crops of all cells, one at a time."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict without the notes."""
        values = {name: value for name, value in vars(self).items() if name != "notes"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def compare_crops(
    original: nn.Module,
    changed: Rewritten,
    input_shape: tuple[int, int, int],
    profiled: Profile,
    *,
    latency: bool,
    output: str = "",
    precise: Rewritten | None = None,
) -> Crops:
    """Compare the map of a larger image with the original on crops of `input_shape`.

    `profiled` is the profile of the changed network's `MapsOnly` at that size, `output` the name of the original's
    logits. If the operation rounds new weights, `precise` is the changed network with exact weights in float64. Raises
    SurgeryError if no larger image gives a larger map.
    """
    _, height, width = input_shape
    larger = _larger(original, changed, input_shape, profiled, latency=latency)
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
    size = f"{absolute:.2g}, or {relative:.2g} of the largest logit"
    messages = {
        "equal": f"each cell equals the original on its crop ({len(crops)} crops, largest difference {size}).",
        "alike": f"each cell equals the original on its crop (to {size}), but the logits are nearly the same for every "
        "crop, so this is weak evidence. Use trained weights.",
        "hidden": f"the cells differ from the original on the crops by up to {size}, possibly from rounding.",
        "differs": f"the cells differ from the original on the crops by up to {size} here. {_reason(original)}",
    }
    equal = verdict == "equal"
    notes = [
        f"A larger image gives a map with one cell per {larger.step[0]}x{larger.step[1]} pixels; {messages[verdict]}"
    ]
    sizes = (image.shape[2], image.shape[3]), (larger.dense.shape[2], larger.dense.shape[3])
    return Crops(tuple(notes), larger.step, *sizes, equal, absolute, relative, larger.milliseconds, crops_ms)


def _verdict(absolute: float, relative: float, original: nn.Module, crops: Tensor, exact: Tensor) -> str:
    """Classify a difference in float64 for the logits (N, K) of these crops."""
    # Logits that are nearly the same for all crops would match any map of them.
    significant = absolute <= MAX_SHARE * float(exact.std(0).max())
    if relative <= EXACT:
        return "equal" if significant else "alike"
    rounding = rounding_of(original, crops)
    if relative > rounding:
        return "differs"
    return "equal" if significant and rounding <= MAX_ROUNDING else "hidden"


@dataclass(frozen=True)
class _Larger:
    """A larger image and the map that the new network returns for it."""

    image: Tensor
    dense: Tensor
    step: tuple[int, int]
    milliseconds: float | None


def _larger(
    original: nn.Module, changed: Rewritten, input_shape: tuple[int, int, int], profiled: Profile, *, latency: bool
) -> _Larger:
    """Run an image with one more cell along rows and columns, or else an image of twice the size.

    Raises SurgeryError if neither gives a larger map.
    """
    reason = "the map has one cell for every image size"
    channels, *sides = input_shape
    for guess in (lambda: _strides(profiled), lambda: step_by_sizes(MapsOnly(changed), input_shape), lambda: (*sides,)):
        try:
            extra = guess()
            if extra is None:
                continue
            image = random_images(1, (channels, sides[0] + extra[0], sides[1] + extra[1]))
            (dense,), milliseconds = _run(MapsOnly(changed), [image], latency=latency)
        except Exception as error:  # noqa: BLE001  (a user's forward may raise anything)
            reason = f"a larger image is an error: {first_line(error)}"
            continue
        gaps = [cells - 1 for cells in dense.shape[2:]]
        if all(gaps) and not any(pixels % gap for pixels, gap in zip(extra, gaps, strict=True)):
            return _Larger(image, dense, (extra[0] // gaps[0], extra[1] // gaps[1]), milliseconds)
        reason = f"an image of {image.shape[2]}x{image.shape[3]} gives a map of {gaps[0] + 1}x{gaps[1] + 1} cells"
    raise SurgeryError(
        f"{type(original).__name__} cannot slide over larger images: {reason}. Networks whose feature maps grow with "
        "the image, up to the pool or flattening of the head, are accepted."
    )


def _strides(profiled: Profile) -> tuple[int, int] | None:
    """Return the map's stride in pixels along rows and columns; None if the receptive field does not show it.

    A norm after the pool hides the stride along one axis; the other axis's stride stands in for it.
    """
    jumps = [axis.jump for axis in profiled.field or () if axis.jump is not None]
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
    """Return the named output for each image, from a copy in eval mode, and with `latency` the time in ms."""
    copy = deep_copy(model).eval()
    weight = next((p for p in copy.parameters() if p.is_floating_point()), torch.empty(0))
    if dtype is not None:
        copy.to(dtype)
    batches = [image.to(weight.device, dtype or weight.dtype) for image in images]
    with isolated_eval(copy):
        if latency and len(batches) == 1:
            copy(batches[0])  # warm up for the new image size; crops have a size that was run before
        start = time.perf_counter()
        outputs = [dict(flat_tensors(copy(batch)))[output] for batch in batches]
    return outputs, (time.perf_counter() - start) * 1e3 if latency else None


def _gap(dense: Tensor, single: list[Tensor]) -> tuple[float, float]:
    """Return the largest absolute and relative difference of the map from the logits of the crops."""
    logits = torch.cat(single).double()
    absolute = float((dense[0].flatten(1).T.double() - logits).abs().max())
    scale = float(logits.abs().max())
    return absolute, absolute / scale if scale else float(absolute > 0)


def _reason(original: nn.Module) -> str:
    """Explain why a crop differs from a window of a larger image."""
    padded = [name for name, module in original.named_modules() if _pads(module)]
    if not padded:
        return "Some step sees more of the image than the crop (a norm, gate or attention), or a function call pads."
    rest = f" and {len(padded) - MAX_LISTED} more" if len(padded) > MAX_LISTED else ""
    layers = ", ".join(padded[:MAX_LISTED]) + rest
    return f"{layers} pad: at the border of a crop they see zeros where the larger image has pixels."


def _pads(module: nn.Module) -> bool:
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in getattr(module, "kernel_size", ()))
    return any(padding) if isinstance(padding, tuple) else bool(padding)
