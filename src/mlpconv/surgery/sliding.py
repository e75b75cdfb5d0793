"""A map of logits against the original on crops: where they are equal, where padding makes them differ, how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mlpconv.analysis import Profile
from mlpconv.errors import MlpconvError
from mlpconv.surgery.checks import copied
from mlpconv.surgery.comparison import quiet, random_images, tensors_of
from mlpconv.surgery.proof import EXACT, TOLERANCES
from mlpconv.surgery.rewritten import Rewritten
from mlpconv.surgery.tracer import first_line

__all__ = ["Crops", "Maps", "slide"]

MORE = (1, 1)
"""Steps by which the larger image has more rows and columns."""
NAMED = 3
TELLING = 1e-3
"""Largest difference, as a part of that between crops, that is rounding."""


class Maps(nn.Module):
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


def slide(
    original: nn.Module, changed: Rewritten, input_shape: tuple[int, int, int], seen: Profile, *, latency: bool
) -> Crops:
    """Compare the map of a larger image with the original on all its crops of the proven size.

    `seen` is the profile of the changed network's `Maps` at that size.
    """
    _, height, width = input_shape
    try:
        step = _step(seen)
        image = random_images(1, (input_shape[0], height + MORE[0] * step[0], width + MORE[1] * step[1]))
        dense, dense_ms = _run(Maps(changed), [image], latency=latency)
    except Exception as error:  # noqa: BLE001  (the forward pass is not ours: on another size it may raise anything)
        return Crops((f"Larger images do not pass the network itself: {first_line(error)}.",))
    corners = list(product(*(range(0, more * by + 1, by) for more, by in zip(MORE, step, strict=True))))
    crops = [image[:, :, y : y + height, x : x + width] for y, x in corners]
    cells = (MORE[0] + 1, MORE[1] + 1)
    if tuple(dense[0].shape[2:]) != cells:
        return Crops(
            (f"An image of {cells[0]}x{cells[1]} crops gives a map of {tuple(dense[0].shape[2:])} cells.",), step
        )
    single, crops_ms = _run(original, crops, latency=latency)
    absolute, relative = _gap(dense[0], single)
    equal = relative <= TOLERANCES.get(single[0].dtype, EXACT)
    if equal:
        exact = _run(original, crops, torch.float64)[0]
        absolute, relative = _gap(_run(Maps(changed), [image], torch.float64)[0][0], exact)
        # Logits that are nearly the same for all crops would be equal to any map of them.
        equal = relative <= EXACT and absolute <= TELLING * float(torch.cat(exact).std(0).max())
    shown = f"{absolute:.2g}, or {relative:.2g} of the largest logit"
    notes = [
        f"A larger image gives a map with one cell for each {step[0]}x{step[1]} pixels; "
        + (
            f"each equals the original on its crop ({len(crops)} crops, largest difference {shown})."
            if equal
            else f"the original on the crops differs from it, by up to {shown} here. {_reason(original)}"
        )
    ]
    return Crops(
        tuple(notes), step, (image.shape[2], image.shape[3]), cells, equal, absolute, relative, dense_ms, crops_ms
    )


def _step(seen: Profile) -> tuple[int, int]:
    """Pixels from one cell of the map to the next, along rows and columns."""
    jumps = [axis.jump for axis in seen.field or ()]
    if len(jumps) != len(MORE) or any(jump is None or jump < 1 or jump % 1 for jump in jumps):
        raise MlpconvError(f"its map of logits has no steps of whole pixels ({jumps})")
    return int(jumps[0] or 0), int(jumps[1] or 0)


def _run(
    model: nn.Module, images: list[Tensor], dtype: torch.dtype | None = None, *, latency: bool = False
) -> tuple[list[Tensor], float | None]:
    """What a copy in eval mode says of each image, by itself; the milliseconds that all took, if asked."""
    copy = copied(model).eval()
    weight = next((p for p in copy.parameters() if p.is_floating_point()), torch.empty(0))
    if dtype is not None:
        copy.to(dtype)
    batches = [image.to(weight.device, dtype or weight.dtype) for image in images]
    with quiet(copy):
        if latency and len(batches) == 1:
            copy(batches[0])  # a size that no pass has prepared for; the crops have the size of the proof
        start = time.perf_counter()
        found = [next(tensors_of(copy(batch)))[1] for batch in batches]
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
        return "Some layers look at more of the image than the crop."
    listed = ", ".join(padded[:NAMED]) + (f" and {len(padded) - NAMED} more" if len(padded) > NAMED else "")
    return f"{listed} pad: at the border of a crop they see zeros where the larger image has pixels."


def _pads(module: nn.Module) -> bool:
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in getattr(module, "kernel_size", ()))
    return any(padding) if isinstance(padding, tuple) else bool(padding)
