"""How much of the outputs is lost where a layer loses some of its responses: tried out, one layer and side at a time.

A layer near the image counts otherwise than one near the logits, and what is left out of the input of a k x k is alike
at neighbouring pixels, so that a later average keeps it. Two trials fix a power law between both losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mlpconv.surgery.lowrank.activation_stats import outputs_of
from mlpconv.surgery.lowrank.batches import LabelledBatch
from mlpconv.surgery.lowrank.candidates import Candidate
from mlpconv.surgery.lowrank.factors import Basis, Side, factorize_layer
from mlpconv.surgery.proof.accept import deep_copy
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["Cuts", "Law", "sensitivity_laws"]

TRIED = (0.02, 0.1)
"""Shares of a layer's responses that are left out on trial."""
APART = 1.2
"""Two trials less far apart than this factor are one."""
STEEPNESS = (0.7, 2.5)
"""Exponents that are believed."""
LEAST = 1e-9


@dataclass(frozen=True)
class Law:
    """Share of the outputs' variance that is lost, from the share of a layer's responses that is lost."""

    trials: tuple[tuple[float, float], ...]
    """(responses lost, outputs lost), the smaller first; one or two, or none: then both are the same."""

    def __call__(self, lost: float) -> float:
        """The outputs' loss; 0 for 0, and rising."""
        if lost <= 0 or not self.trials:
            return max(0.0, lost)
        (near, made), (far, more) = self.trials[0], self.trials[-1]
        if near == far:
            return made * lost / near
        steepness = math.log(more / made) / math.log(far / near)
        steepness = min(max(steepness, STEEPNESS[0]), STEEPNESS[1])
        if lost < math.sqrt(near * far):
            return float(made * (lost / near) ** steepness)
        joint = made * math.sqrt(far / near) ** steepness, more * math.sqrt(near / far) ** steepness
        return float(max(joint[0] / joint[1], 1.0) * more * (lost / far) ** steepness)


@dataclass(frozen=True)
class Cuts:
    """The laws of a layer's two sides."""

    into: Law
    out: Law


def sensitivity_laws(
    model: nn.Module, batches: Sequence[LabelledBatch], candidates: Mapping[str, Candidate], bases: Mapping[str, Basis]
) -> dict[str, Cuts]:
    """The laws of every layer, by trials on these images."""
    wanted = outputs_of(model, batches)
    variance = float((wanted - wanted.mean(0)).square().sum())
    changed = deep_copy(model)

    def tried(name: str, rank_in: int | None, rank_out: int | None) -> float:
        layer = changed.get_submodule(name)
        replace_module(changed, name, factorize_layer(candidates[name].layer, bases[name], rank_in, rank_out))
        lost = float((outputs_of(changed, batches) - wanted).square().sum()) / max(variance, LEAST)
        replace_module(changed, name, layer)
        return max(lost, LEAST)

    found = {}
    for name, basis in bases.items():
        into = [] if basis.into is None else [(lost, tried(name, rank, None)) for lost, rank in _ranks(basis.into)]
        out = [(lost, tried(name, None, rank)) for lost, rank in _ranks(basis.out)]
        found[name] = Cuts(Law(tuple(into)), Law(tuple(out)))
    return found


def _ranks(side: Side) -> list[tuple[float, int]]:
    """The ranks to try on a side, and what they lose of the responses; the smaller loss first."""
    losses = [(max(float(lost), LEAST), rank) for rank, lost in enumerate(side.lost)][1:-1]
    found: list[tuple[float, int]] = []
    for share in TRIED if losses else ():
        near = min(losses, key=lambda each: abs(math.log(each[0] / share)))
        if not found or near[0] > APART * found[-1][0]:
            found.append(near)
    return found
