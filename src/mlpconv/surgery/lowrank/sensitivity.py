"""Measure how the network's output error depends on the error of each layer, one layer and side at a time.

An error near the image has a different effect than one near the logits, and directions missing from the input of a
k x k convolution are correlated between neighbouring pixels, so that later averaging does not remove the error. Two
trials determine a power law between the two errors.
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
from mlpconv.surgery.tracing.accept import deep_copy
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["LayerSensitivity", "PowerLaw", "measure_sensitivity"]

TRIALS = (0.02, 0.1)
"""Fractions of a layer's output variance to lose in the trials."""
MIN_RATIO = 1.2
"""Two trials with a smaller ratio of losses count as one."""
EXPONENTS = (0.7, 2.5)
"""Bounds of the exponent."""
MIN_LOSS = 1e-9


@dataclass(frozen=True)
class PowerLaw:
    """The fraction of the network's output variance lost, as a function of the fraction a layer's output loses."""

    trials: tuple[tuple[float, float], ...]
    """Up to two pairs (loss of the layer, loss of the network), smaller first; without trials the two are equal."""

    def __call__(self, loss: float) -> float:
        """Return the loss of the network, 0 for 0 and increasing."""
        if loss <= 0 or not self.trials:
            return max(0.0, loss)
        (low, network_low), (high, network_high) = self.trials[0], self.trials[-1]
        if low == high:
            return network_low * loss / low
        exponent = math.log(network_high / network_low) / math.log(high / low)
        exponent = min(max(exponent, EXPONENTS[0]), EXPONENTS[1])
        if loss < math.sqrt(low * high):
            return float(network_low * (loss / low) ** exponent)
        # With a clamped exponent the laws through the two trials differ: the second continues where the first ends.
        middle = network_low * math.sqrt(high / low) ** exponent, network_high * math.sqrt(low / high) ** exponent
        return float(max(middle[0] / middle[1], 1.0) * network_high * (loss / high) ** exponent)


@dataclass(frozen=True)
class LayerSensitivity:
    """The power laws of a layer's input and output side."""

    into: PowerLaw
    out: PowerLaw


def measure_sensitivity(
    model: nn.Module, batches: Sequence[LabelledBatch], candidates: Mapping[str, Candidate], bases: Mapping[str, Basis]
) -> dict[str, LayerSensitivity]:
    """Return the sensitivity of every candidate, by trials on these images."""
    outputs = outputs_of(model, batches)
    variance = float((outputs - outputs.mean(0)).square().sum())
    probed = deep_copy(model)

    def network_loss(name: str, rank_in: int | None, rank_out: int | None) -> float:
        layer = probed.get_submodule(name)
        replace_module(probed, name, factorize_layer(candidates[name].layer, bases[name], rank_in, rank_out))
        loss = float((outputs_of(probed, batches) - outputs).square().sum()) / max(variance, MIN_LOSS)
        replace_module(probed, name, layer)
        return max(loss, MIN_LOSS)

    sensitivities = {}
    for name, basis in bases.items():
        trials_in = _trials(basis.into) if basis.into is not None else []
        into = PowerLaw(tuple((loss, network_loss(name, rank, None)) for loss, rank in trials_in))
        out = PowerLaw(tuple((loss, network_loss(name, None, rank)) for loss, rank in _trials(basis.out)))
        sensitivities[name] = LayerSensitivity(into, out)
    return sensitivities


def _trials(side: Side) -> list[tuple[float, int]]:
    """Return the losses of the layer and the ranks to try on a side, smaller loss first."""
    losses = [(max(float(loss), MIN_LOSS), rank) for rank, loss in enumerate(side.lost)][1:-1]
    trials: list[tuple[float, int]] = []
    for target in TRIALS if losses else ():
        nearest = min(losses, key=lambda pair: abs(math.log(pair[0] / target)))
        if not trials or nearest[0] > MIN_RATIO * trials[-1][0]:
            trials.append(nearest)
    return trials
