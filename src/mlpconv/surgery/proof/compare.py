"""How far the outputs of two networks lie apart, on images, in the network's own number format and in float64.

Both run in eval mode, as copies; no state or random number of the caller's changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.errors import MlpconvError, SurgeryError, UsageError, first_line
from mlpconv.surgery.proof.accept import deep_copy

__all__ = [
    "Difference",
    "ImageBatch",
    "Proof",
    "compare",
    "comparison_batches",
    "difference_of",
    "flat_tensors",
    "in_float64",
    "isolated_eval",
    "named_outputs",
    "random_images",
]

Model = TypeVar("Model", bound=nn.Module)
TOLD_APART = 1e-6
"""Smallest relative difference between two images' outputs that shows that they depend on the image."""
ImageBatch = tuple[str, Tensor]
"""Where images are from, and they: (N, C, H, W)."""
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
    batches, few = comparison_batches(check_input_shape(input_shape), images)
    own = next((p.dtype for p in original.parameters() if p.is_floating_point()), torch.float32)
    notes: list[str] = []
    # One network after the other: each needs a copy in its own number format, and in float64 twice as much.
    one = deep_copy(original)
    before = [_outputs_of(one, batch, own) for batch in batches]
    exact: list[dict[str, Tensor]] | None = None
    if own is not torch.float64:
        try:
            exact = named_outputs(one, few, torch.float64)
        except MlpconvError:
            raise
        except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
            text = first_line(error)
            notes.append(f"The network does not run in float64 ({text}), so the differences hold rounding too.")
    del one
    other = deep_copy(changed)
    after = named_outputs(other, batches, own)
    found = [difference_of(a, b, batch, own) for a, b, batch in zip(before, after, batches, strict=True)]
    if exact is not None:
        if precise is not None:
            other = deep_copy(precise)
        after = named_outputs(other, few, torch.float64)
        found += [difference_of(a, b, batch, torch.float64) for a, b, batch in zip(exact, after, few, strict=True)]
    told_apart = _told_apart(before)
    if told_apart < TOLD_APART:
        notes.append(
            "The outputs are nearly the same for all of these images, so their equality says little: give trained "
            "weights, or images of your own."
        )
    return Proof(tuple(found), tuple(notes))


def comparison_batches(shape: tuple[int, int, int], images: Tensor | None) -> tuple[list[ImageBatch], list[ImageBatch]]:
    """What is compared in the network's own number format, and beside that in float64, which is slow."""
    batches = [("random", random_images(count, shape)) for count in BATCHES]
    if images is not None:
        batches.append(("given", _checked(images, shape)))
    return batches, [(source, batch[:1] if source == "random" else batch) for source, batch in batches[1:]]


def _outputs_of(model: nn.Module, batch: ImageBatch, dtype: torch.dtype) -> dict[str, Tensor]:
    """The original's outputs for a batch; SurgeryError where it does not take the batch."""
    try:
        return named_outputs(model, [batch], dtype)[0]
    except MlpconvError:
        raise
    except Exception as error:
        text = first_line(error)
        raise SurgeryError(
            f"{type(model).__name__} itself fails on a batch of {len(batch[1])} ({batch[0]} images): {text}. A "
            "network that works on each image of a batch by itself is accepted."
        ) from error


def _told_apart(outputs: list[dict[str, Tensor]]) -> float:
    """The largest difference between the outputs for two images, as a part of the largest number."""
    several = [tensor for batch in outputs for tensor in batch.values() if tensor.dim() and len(tensor) > 1]
    gaps = ((each.amax(0) - each.amin(0)).max() / each.abs().max() for each in several if each.any())
    return max(map(float, gaps), default=0.0)


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
    return cast("Model", deep_copy(model).cpu().double())


@contextmanager
def isolated_eval(model: nn.Module) -> Iterator[None]:
    """No gradients, no TF32, and every random number the network may draw from a state of its own, put back after."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    gpus = [device] if device.type == "cuda" else []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with torch.no_grad(), torch.random.fork_rng(devices=gpus), exact:
        torch.manual_seed(SEED)
        yield


def named_outputs(model: nn.Module, batches: list[ImageBatch], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Each batch's outputs by name; puts the network into eval mode and this number format, so it must be a copy."""
    model.eval()
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.dtype != dtype:
        model.to(dtype)
    found = []
    for _, batch in batches:
        with isolated_eval(model):
            output = model(batch.to(weight.device, dtype))
        found.append({name: tensor.double().cpu() for name, tensor in flat_tensors(output)})
    return found


def flat_tensors(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
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
        yield from flat_tensors(value, f"{name}.{key}" if name else str(key))


def difference_of(
    before: dict[str, Tensor], after: dict[str, Tensor], batch: ImageBatch, dtype: torch.dtype
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
