"""Measure the difference between the outputs of two networks, in the network's own dtype and in float64.

Both run in eval mode, as copies; no state of the caller's networks and no random state changes.
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
from mlpconv.surgery.tracing.accept import deep_copy

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
MIN_SPREAD = 1e-6
"""Smallest relative difference between two images' outputs that counts as dependence on the image."""
ImageBatch = tuple[str, Tensor]
"""Origin of the images, and the images (N, C, H, W)."""
BATCHES = (1, 2)
SEED = 20131312


@dataclass(frozen=True)
class Difference:
    """The difference between the outputs of two networks on a batch of images."""

    images: str
    """"random" or "given"."""
    count: int
    """Batch size."""
    dtype: str
    absolute: float
    """Largest absolute difference."""
    scale: float
    """Largest absolute output of the original."""

    @property
    def relative(self) -> float:
        """Largest difference relative to the largest output."""
        return self.absolute / self.scale if self.scale else float(self.absolute > 0)

    def __str__(self) -> str:
        return f"{self.dtype}, {self.count} {self.images}: {self.absolute:.2g} absolute, {self.relative:.2g} relative"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"relative": self.relative}


@dataclass(frozen=True)
class Proof:
    """All comparisons of two networks."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    """Caveats."""

    def worst(self, dtype: str) -> Difference | None:
        """Return the largest relative difference in this dtype; None if it was not used."""
        differences = [difference for difference in self.differences if difference.dtype == dtype]
        return max(differences, key=lambda difference: difference.relative, default=None)


def compare(
    original: nn.Module,
    changed: nn.Module,
    input_shape: tuple[int, int, int],
    images: Tensor | None = None,
    precise: nn.Module | None = None,
) -> Proof:
    """Measure the difference between two networks on random images of (C, H, W) and on `images` (N, C, H, W).

    Both run in the network's own dtype and in float64, where `precise` replaces `changed`, if passed. Raises
    SurgeryError if the outputs cannot be compared (shapes differ, NaN), UsageError for images of the wrong shape.
    """
    batches, few = comparison_batches(check_input_shape(input_shape), images)
    own = next((p.dtype for p in original.parameters() if p.is_floating_point()), torch.float32)
    notes: list[str] = []
    # One network at a time, to save memory: each needs a copy in its own dtype and then one in float64.
    copy = deep_copy(original)
    before = [_outputs_of(copy, batch, own) for batch in batches]
    exact: list[dict[str, Tensor]] | None = None
    if own is not torch.float64:
        try:
            exact = named_outputs(copy, few, torch.float64)
        except MlpconvError:
            raise
        except Exception as error:  # noqa: BLE001  (the forward pass is not ours: it may raise anything)
            text = first_line(error)
            notes.append(f"The network does not run in float64 ({text}), so the differences include rounding.")
    del copy
    copy = deep_copy(changed)
    after = named_outputs(copy, batches, own)
    differences = [difference_of(a, b, batch, own) for a, b, batch in zip(before, after, batches, strict=True)]
    if exact is not None:
        if precise is not None:
            copy = deep_copy(precise)
        after = named_outputs(copy, few, torch.float64)
        differences += [
            difference_of(a, b, batch, torch.float64) for a, b, batch in zip(exact, after, few, strict=True)
        ]
    if _spread(before) < MIN_SPREAD:
        notes.append(
            "The outputs are nearly the same for all of these images, so their equality means little: pass a network "
            "with trained weights, or your own images."
        )
    return Proof(tuple(differences), tuple(notes))


def comparison_batches(shape: tuple[int, int, int], images: Tensor | None) -> tuple[list[ImageBatch], list[ImageBatch]]:
    """Return the batches to compare in the network's own dtype, and fewer for float64, which is slow."""
    batches = [("random", random_images(count, shape)) for count in BATCHES]
    if images is not None:
        batches.append(("given", _checked(images, shape)))
    return batches, [(source, batch[:1] if source == "random" else batch) for source, batch in batches[1:]]


def _outputs_of(model: nn.Module, batch: ImageBatch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the original's outputs for a batch; raise SurgeryError if it rejects the batch."""
    try:
        return named_outputs(model, [batch], dtype)[0]
    except MlpconvError:
        raise
    except Exception as error:
        text = first_line(error)
        raise SurgeryError(
            f"{type(model).__name__} itself fails on a batch of {len(batch[1])} ({batch[0]} images): {text}. Pass "
            "a network that processes the images of a batch independently."
        ) from error


def _spread(outputs: list[dict[str, Tensor]]) -> float:
    """Return the largest difference between two images' outputs, relative to the largest output."""
    tensors = [tensor for batch in outputs for tensor in batch.values() if tensor.dim() and len(tensor) > 1]
    gaps = ((tensor.amax(0) - tensor.amin(0)).max() / tensor.abs().max() for tensor in tensors if tensor.any())
    return max(map(float, gaps), default=0.0)


def random_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Return standard normal images (N, C, H, W), seeded by their number."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(SEED + count))


def _checked(images: object, shape: tuple[int, int, int]) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != shape[0] or not len(images):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images are {what}; pass a tensor (N, {shape[0]}, H, W), preprocessed for the network.")
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}; pass floats: apply the network's preprocessing first.")
    return images


def in_float64(model: Model) -> Model:
    """Return a copy in float64 on the CPU, so that weights computed there are rounded once, at the end."""
    return cast("Model", deep_copy(model).cpu().double())


@contextmanager
def isolated_eval(model: nn.Module) -> Iterator[None]:
    """Disable gradients and TF32, seed the random state, and restore all of it afterwards."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    gpus = [device] if device.type == "cuda" else []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with torch.no_grad(), torch.random.fork_rng(devices=gpus), exact:
        torch.manual_seed(SEED)
        yield


def named_outputs(model: nn.Module, batches: list[ImageBatch], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Return each batch's outputs by name; changes the network, a copy, to eval mode and this dtype."""
    model.eval()
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.dtype != dtype:
        model.to(dtype)
    outputs = []
    for _, batch in batches:
        with isolated_eval(model):
            output = model(batch.to(weight.device, dtype))
        outputs.append({name: tensor.double().cpu() for name, tensor in flat_tensors(output)})
    return outputs


def flat_tensors(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in a network's output with its path through tuples, lists, mappings and dataclasses."""
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
        parts = ((field.name, getattr(output, field.name)) for field in fields(output))
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
    """Return the largest difference over all outputs; raise SurgeryError for unequal shapes, NaN or infinity."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (before, after)]
    if shapes[0] != shapes[1]:
        raise SurgeryError(f"The changed network returns {shapes[1]}, the original {shapes[0]}: it is not returned.")
    for which, outputs in (("original", before), ("changed", after)):
        broken = [name or "its output" for name, tensor in outputs.items() if not bool(tensor.isfinite().all())]
        if broken:
            raise SurgeryError(
                f"The {which} network returns NaN or infinity ({broken[0]}) on {batch[0]} images in {dtype}, so it "
                "cannot be verified: fix its weights, or convert it to float32."
            )
    gaps = [float((a - b).abs().max()) for a, b in zip(before.values(), after.values(), strict=True) if a.numel()]
    scales = [float(a.abs().max()) for a in before.values() if a.numel()]
    name = str(dtype).removeprefix("torch.")
    return Difference(batch[0], len(batch[1]), name, max(gaps, default=0.0), max(scales, default=0.0))
