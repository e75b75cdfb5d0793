"""What layers of a network see and make of images: moments, gathered by hooks, on a copy in eval mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlpconv.errors import MlpconvError, SurgeryError, first_line
from mlpconv.surgery.lowrank.batches import LabelledBatch
from mlpconv.surgery.lowrank.candidates import Candidate
from mlpconv.surgery.lowrank.factors import Basis, FactorizableLayer, basis_by_activations, is_1x1
from mlpconv.surgery.lowrank.moments import Moments, as_rows
from mlpconv.surgery.proof.compare import flat_tensors, isolated_eval

__all__ = ["PLACES", "bases_of", "outputs_of", "paired"]

PLACES = 64
"""Pixels of each image that a layer is looked at, at most: neighbours tell little more."""
TOKENS = 3


class _Enough(Exception):
    """The layer that was asked for has been called for the last time."""


def _run(model: nn.Module, images: Tensor) -> Any:
    weight = next((p for p in model.parameters() if p.is_floating_point()), images)
    with isolated_eval(model):
        return model(images.to(weight.device, weight.dtype))


def outputs_of(model: nn.Module, batches: Sequence[LabelledBatch]) -> Tensor:
    """What the network says of all images, one row each: tuples and maps laid side by side, in float32 on the CPU.

    Raises SurgeryError, with its own words, where it cannot take them.
    """
    found = []
    try:
        for batch in batches:
            parts = [tensor.flatten(1) for _, tensor in flat_tensors(_run(model, batch.images))]
            found.append(torch.cat(parts, 1).float().cpu())
    except MlpconvError:
        raise
    except Exception as error:  # the forward pass is not ours: it may raise anything
        size = "x".join(map(str, batches[0].images.shape[1:]))
        text = first_line(error)
        raise SurgeryError(f"{type(model).__name__} fails on images of {size}: {text}") from error
    return torch.cat(found)


def bases_of(
    model: nn.Module, batches: Sequence[LabelledBatch], candidates: Mapping[str, Candidate]
) -> dict[str, Basis]:
    """The directions of each layer by what it sees and makes of the images."""
    gathered: dict[str, tuple[Moments | None, Moments]] = {}

    def watch(name: str) -> Callable[..., None]:
        layer, (channels, out, _) = candidates[name].layer, candidates[name].sizes
        seen = None if is_1x1(layer) else Moments(channels)
        made = Moments(out)
        gathered[name] = (seen, made)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            generator = torch.Generator().manual_seed(made.count)
            made.add(_sample(layer, output, generator))
            if seen is not None:
                seen.add(_sample(layer, inputs[0], generator))

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in candidates]
    try:
        for batch in batches:
            _run(model, batch.images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: basis_by_activations(candidates[name].layer, *gathered[name]) for name in candidates}


def _sample(layer: FactorizableLayer, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Rows (P, C) of what a layer sees or makes, at some of the places of each image."""
    if tensor.dim() < TOKENS:
        return as_rows(tensor)
    maps = tensor.movedim(-1, 1) if isinstance(layer, nn.Linear) else tensor  # a linear layer's channels come last
    count = math.prod(maps.shape[2:])
    return as_rows(maps.flatten(2).unsqueeze(3), torch.randperm(count, generator=generator)[:PLACES])


def paired(
    original: nn.Module, changed: nn.Module, name: str, each: Candidate, batches: Sequence[LabelledBatch]
) -> Moments:
    """The moments of what a layer of the changed network makes, crossed with what that of the original makes."""
    moments: Moments | None = None
    for number, batch in enumerate(batches):
        target, given = (_rows_of(model, name, each, batch, number) for model in (original, changed))
        if moments is None:
            moments = Moments(given.shape[1], target.shape[1])
        moments.add(given, target)
    return moments or Moments(1, 1)


def _rows_of(model: nn.Module, name: str, each: Candidate, batch: LabelledBatch, seed: int) -> Tensor:
    """Rows (P, C) of what the layer makes of a batch; the forward pass ends there."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        found.append(_sample(each.layer, output, generator))
        if len(found) == each.calls:
            raise _Enough

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        _run(model, batch.images)
    except _Enough:
        pass
    finally:
        handle.remove()
    return torch.cat(found)
