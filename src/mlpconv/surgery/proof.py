"""Whether two networks compute the same: measured on images, in the network's own number format and in float64.

Rounding hides errors and looks like one. In float64 an exact operation differs by 1e-12 or so and a wrong one by about
as much as in float32, so float64 decides. Both networks run in eval mode, as copies; no state or random number of the
caller's changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mlpconv.errors import MlpconvError, SurgeryError, UsageError
from mlpconv.surgery.checks import check_shape, copied

__all__ = ["Difference", "Proof", "compare", "in_float64", "prove", "quiet", "random_images", "tensors_of"]

Model = TypeVar("Model", bound=nn.Module)
EXACT = 1e-9
"""Largest relative difference in float64 that is called rounding."""
TOLERANCES = {torch.float64: EXACT, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""The same in the network's own number format, where rounding can be amplified by depth."""
TOLD_APART = 1e-6
"""Smallest relative difference between two images' outputs that shows that they depend on the image."""
ROUNDINGS = 10
"""So many times the original's own rounding is rounding, where that is more."""
BATCHES = (1, 2)
SEED = 20131312


@dataclass(frozen=True)
class Difference:
    """How far the outputs of two networks lie apart on some images."""

    images: str
    """"random" or "given"."""
    count: int
    """Images, as one batch."""
    dtype: str
    absolute: float
    """The largest difference of two numbers."""
    scale: float
    """The largest number that the original gives."""

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest number."""
        return self.absolute / self.scale if self.scale else float(self.absolute > 0)

    def __str__(self) -> str:
        return f"{self.dtype}, {self.count} {self.images}: {self.absolute:.2g} absolute, {self.relative:.2g} relative"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"relative": self.relative}


@dataclass(frozen=True)
class Proof:
    """All comparisons of two networks."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    """What the reader must know about them."""

    def worst(self, dtype: str) -> Difference | None:
        """The largest relative difference in this number format; None where it was not used."""
        found = [each for each in self.differences if each.dtype == dtype]
        return max(found, key=lambda each: each.relative, default=None)


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
    own number format (1e-3 for float32, or ten times what the original itself loses to rounding, if not given); in
    float64 it is 1e-9, unless the network itself computes in less. Where the operation rounds new weights to that
    format, `precise` is what it makes of the original in float64.
    Raises SurgeryError, with the figure, where the promise is not kept.
    """
    found = compare(original, changed, input_shape, images, precise)
    for difference in found.differences:
        own = getattr(torch, difference.dtype)
        allowed = EXACT if own is torch.float64 else tolerance if tolerance is not None else TOLERANCES.get(own, EXACT)
        if difference.relative <= allowed:
            continue
        if own is torch.float64 and difference.relative <= TOLERANCES[torch.float32] and _loses(original, input_shape):
            note = "The network itself computes in less than float64, so float64 shows no more than float32."
            found = replace(found, notes=(*found.notes, note))
            continue
        if own is not torch.float64 and tolerance is None and found.worst("float64") is not None:
            rounding = _rounding(original, input_shape, images, own)
            if difference.relative <= ROUNDINGS * rounding:
                note = f"Rounding in {difference.dtype} alone moves the original's outputs by {rounding:.1g} relative."
                found = replace(found, notes=tuple(dict.fromkeys((*found.notes, note))))
                continue
        raise SurgeryError(
            f"The changed {type(original).__name__} was to compute the same and does not ({difference}; at most "
            f"{allowed:g} relative is rounding), so it is not returned. This is a bug: please report the network."
        )
    return found


def compare(
    original: nn.Module,
    changed: nn.Module,
    input_shape: tuple[int, int, int],
    images: Tensor | None = None,
    precise: nn.Module | None = None,
) -> Proof:
    """Measure how far two networks lie apart, on random images of (C, H, W) and on those given (N, C, H, W).

    In the network's own number format, and in float64 (there `precise` stands for `changed`, if given). Raises
    SurgeryError where their outputs cannot be compared (other shapes, NaN), UsageError for images that do not fit.
    """
    shape = check_shape(input_shape)
    batches = [("random", random_images(count, shape)) for count in BATCHES]
    if images is not None:
        batches.append(("given", _checked(images, shape)))
    own = next((p.dtype for p in original.parameters() if p.is_floating_point()), torch.float32)
    notes: list[str] = []
    before, after = _outputs(original, batches, own), _outputs(changed, batches, own)
    found = [_difference(a, b, batch, own) for a, b, batch in zip(before, after, batches, strict=True)]
    told_apart = _told_apart(before)
    if own is not torch.float64:
        few = [(source, batch[:1] if source == "random" else batch) for source, batch in batches[1:]]
        try:
            before = _outputs(original, few, torch.float64)
        except MlpconvError:
            raise
        except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            notes.append(f"The network does not run in float64 ({text}), so the differences hold rounding too.")
        else:
            after = _outputs(precise or changed, few, torch.float64)
            found += [_difference(a, b, batch, torch.float64) for a, b, batch in zip(before, after, few, strict=True)]
    if told_apart < TOLD_APART:
        notes.append(
            "The outputs are nearly the same for all of these images, so their equality says little: give trained "
            "weights, or images of your own."
        )
    return Proof(tuple(found), tuple(notes))


def _told_apart(outputs: list[dict[str, Tensor]]) -> float:
    """The largest difference between the outputs for two images, as a part of the largest number."""
    several = [tensor for batch in outputs for tensor in batch.values() if len(tensor) > 1 and bool(tensor.any())]
    return max((float((each.amax(0) - each.amin(0)).max() / each.abs().max()) for each in several), default=0.0)


def random_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Images of their own random numbers: (N, C, H, W), standard normal."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(SEED + count))


def _checked(images: object, shape: tuple[int, int, int]) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != shape[0] or not len(images):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images are {what}; a tensor (N, {shape[0]}, H, W) as the network takes it is accepted.")
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}; floats are accepted: apply the network's preprocessing first.")
    return images


def in_float64(model: Model) -> Model:
    """A copy in float64 on the CPU: new weights worked out there are rounded once, at the end."""
    return cast("Model", copied(model).cpu().double())


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """No gradients, no TF32, and every random number the network may draw from a state of its own, put back after."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    gpus = [device] if device.type == "cuda" else []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with torch.no_grad(), torch.random.fork_rng(devices=gpus), exact:
        torch.manual_seed(SEED)
        yield


def _outputs(model: nn.Module, batches: list[tuple[str, Tensor]], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """What a copy of the network in this number format says of each batch, by name."""
    copy = copied(model).eval()
    weight = next((p for p in copy.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.dtype != dtype:
        copy.to(dtype)
    found = []
    for _, batch in batches:
        with quiet(copy):
            output = copy(batch.to(weight.device, dtype))
        found.append({name: tensor.double().cpu() for name, tensor in tensors_of(output)})
    return found


def tensors_of(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in what a network returns, with its place: tuples, lists, mappings, dataclasses; None is nothing."""
    if isinstance(output, Tensor):
        yield name, output
        return
    parts: Iterator[tuple[Any, Any]]
    if isinstance(output, Mapping):
        parts = iter(output.items())
    elif isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        parts = iter(zip(names, output, strict=True))
    elif is_dataclass(output):
        parts = ((each.name, getattr(output, each.name)) for each in fields(output))
    elif output is None or isinstance(output, int | float | str):
        return
    else:
        raise SurgeryError(
            f"The network returns a {type(output).__name__}; tensors, and tuples, lists, mappings and dataclasses of "
            "tensors can be compared."
        )
    for key, value in parts:
        yield from tensors_of(value, f"{name}.{key}" if name else str(key))


def _difference(
    before: dict[str, Tensor], after: dict[str, Tensor], batch: tuple[str, Tensor], dtype: torch.dtype
) -> Difference:
    """The largest difference over all outputs; SurgeryError where they are not of one shape, or no numbers."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (before, after)]
    if shapes[0] != shapes[1]:
        raise SurgeryError(f"The changed network returns {shapes[1]}, the original {shapes[0]}: it is not returned.")
    for which, outputs in (("original", before), ("changed", after)):
        bad = [name or "its output" for name, tensor in outputs.items() if not bool(tensor.isfinite().all())]
        if bad:
            raise SurgeryError(
                f"The {which} network gives NaN or infinity ({bad[0]}) on {batch[0]} images in {dtype}, so nothing can "
                "be proven: mend its weights, or convert it to float32."
            )
    gaps = [float((a - b).abs().max()) for a, b in zip(before.values(), after.values(), strict=True) if a.numel()]
    scales = [float(a.abs().max()) for a in before.values() if a.numel()]
    name = str(dtype).removeprefix("torch.")
    return Difference(batch[0], len(batch[1]), name, max(gaps, default=0.0), max(scales, default=0.0))


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything is rounded to fewer digits."""

    lost = False

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in (torch.float32, torch.float16, torch.bfloat16):
            self.lost = True
        return result


def _rounding(model: nn.Module, shape: tuple[int, int, int], images: Tensor | None, own: torch.dtype) -> float:
    """How far the network in its own number format is from itself in float64, relative to the largest number."""
    batches = [("random", random_images(2, shape)), *([("given", images)] if images is not None else [])]
    rows = zip(_outputs(model, batches, torch.float64), _outputs(model, batches, own), batches, strict=True)
    return max(_difference(exact, rounded, batch, own).relative for exact, rounded, batch in rows)


def _loses(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the network, in float64, casts to fewer digits on its way."""
    copy = copied(model).eval().double()
    device = next((p.device for p in copy.parameters()), torch.device("cpu"))
    image = random_images(1, shape).to(device, torch.float64)
    mode = _Precision()  # type: ignore[no-untyped-call]
    with quiet(copy), mode:
        copy(image)
    return mode.lost
