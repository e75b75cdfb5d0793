"""Activation statistics: moments of the inputs and outputs of layers, gathered by hooks in eval mode."""

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

__all__ = ["POSITIONS", "bases_of", "outputs_of", "paired_moments"]

POSITIONS = 64
"""Largest number of positions sampled in each image: neighbouring pixels add little information."""
TOKENS = 3
"""Number of dimensions of tokens (N, L, C)."""


class _LastCall(Exception):
    """Ends a forward pass after the last call of the sampled layer."""


def _forward(model: nn.Module, images: Tensor) -> Any:
    weight = next((p for p in model.parameters() if p.is_floating_point()), images)
    with isolated_eval(model):
        return model(images.to(weight.device, weight.dtype))


def outputs_of(model: nn.Module, batches: Sequence[LabelledBatch]) -> Tensor:
    """Return the outputs for all images as (N, D) float32 on the CPU, all output tensors flattened and concatenated.

    Raises SurgeryError with the network's own message if its forward pass fails.
    """
    outputs = []
    try:
        for batch in batches:
            tensors = [tensor.flatten(1) for _, tensor in flat_tensors(_forward(model, batch.images))]
            outputs.append(torch.cat(tensors, 1).float().cpu())
    except MlpconvError:
        raise
    except Exception as error:  # a foreign forward pass may raise anything
        size = "x".join(map(str, batches[0].images.shape[1:]))
        raise SurgeryError(f"{type(model).__name__} fails on images of {size}: {first_line(error)}") from error
    return torch.cat(outputs)


def bases_of(
    model: nn.Module, batches: Sequence[LabelledBatch], candidates: Mapping[str, Candidate]
) -> dict[str, Basis]:
    """Return the directions of each candidate by the statistics of its inputs and outputs on the images."""
    statistics: dict[str, tuple[Moments | None, Moments]] = {}

    def gather(name: str) -> Callable[..., None]:
        layer, (channels, out, _) = candidates[name].layer, candidates[name].sizes
        input_moments = None if is_1x1(layer) else Moments(channels)
        output_moments = Moments(out)
        statistics[name] = (input_moments, output_moments)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            generator = torch.Generator().manual_seed(output_moments.count)
            output_moments.add(_sample(layer, output, generator))
            if input_moments is not None:
                input_moments.add(_sample(layer, inputs[0], generator))

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(gather(name)) for name in candidates]
    try:
        for batch in batches:
            _forward(model, batch.images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: basis_by_activations(candidates[name].layer, *statistics[name]) for name in candidates}


def _sample(layer: FactorizableLayer, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows (P, C) of a layer's input or output at up to POSITIONS random positions of each image."""
    if tensor.dim() < TOKENS:
        return as_rows(tensor)
    maps = tensor.movedim(-1, 1) if isinstance(layer, nn.Linear) else tensor  # the channels of a linear layer come last
    count = math.prod(maps.shape[2:])
    return as_rows(maps.flatten(2).unsqueeze(3), torch.randperm(count, generator=generator)[:POSITIONS])


def paired_moments(
    original: nn.Module, factorized: nn.Module, name: str, candidate: Candidate, batches: Sequence[LabelledBatch]
) -> Moments:
    """Return the moments of a layer's output in the factorized network, crossed with those in the original."""
    moments: Moments | None = None
    for number, batch in enumerate(batches):
        target, rows = (_output_rows(model, name, candidate, batch, number) for model in (original, factorized))
        if moments is None:
            moments = Moments(rows.shape[1], target.shape[1])
        moments.add(rows, target)
    return moments or Moments(1, 1)


def _output_rows(model: nn.Module, name: str, candidate: Candidate, batch: LabelledBatch, seed: int) -> Tensor:
    """Return rows (P, C) of a layer's output for a batch; the forward pass ends at the layer's last call."""
    generator = torch.Generator().manual_seed(seed)
    outputs: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        outputs.append(_sample(candidate.layer, output, generator))
        if len(outputs) == candidate.calls:
            raise _LastCall

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        _forward(model, batch.images)
    except _LastCall:
        pass
    finally:
        handle.remove()
    return torch.cat(outputs)
