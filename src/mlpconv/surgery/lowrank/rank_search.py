"""Search for the ranks of a network's layers within a budget, and measure the error on held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mlpconv.analysis import profile
from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.errors import SurgeryError, UsageError, did_you_mean
from mlpconv.surgery.lowrank.activation_stats import POSITIONS, bases_of, outputs_of, paired_moments
from mlpconv.surgery.lowrank.allocate import Choice, Option, choose, path
from mlpconv.surgery.lowrank.batches import LabelledBatch, labels_of, split
from mlpconv.surgery.lowrank.candidates import find_candidates
from mlpconv.surgery.lowrank.factors import Basis, basis_by_weights, factorize_layer, reconstruct
from mlpconv.surgery.lowrank.sensitivity import measure_sensitivity
from mlpconv.surgery.report import measure_figures
from mlpconv.surgery.tracing.accept import deep_copy
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["RankSearch", "replace_layers"]

CURVE = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Fractions of the multiply-adds at which the curve is measured, down to the lowest that ranks allow."""
RESOLUTION = 128
"""Number of costs between the cheapest and the original network that the search for an error budget distinguishes."""


class RankSearch:
    """A network with the costs and errors of its layers at lower ranks, for the search of a choice of ranks."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[LabelledBatch],
        held_out: Sequence[LabelledBatch] | None,
        by: str,
        layers: Sequence[str] | None,
    ) -> None:
        self.by = by
        self.shape = check_input_shape(tuple(batches[0].images.shape[1:]))
        self.original = deep_copy(model).eval()
        self.calibration, self.held_out = split(batches) if held_out is None else (batches, held_out)
        self.labels = labels_of(self.held_out)
        self.outputs = self._original_outputs()
        self.variance = float((self.outputs - self.outputs.mean(0)).square().sum())
        self.candidates, self.left_alone = find_candidates(self.original, batches[0].images[:1])
        self._restrict(layers)
        self.total = measure_figures(model, self.shape, latency=False).macs
        self.weight_bases = {name: basis_by_weights(layer.layer) for name, layer in self.candidates.items()}
        self.bases = self.weight_bases
        self.options = [candidate.options(self.bases[name]) for name, candidate in self.candidates.items()]
        if by == "activations":
            self.bases = bases_of(self.original, self.calibration, self.candidates)
            sensitivities = measure_sensitivity(self.original, self.calibration[:1], self.candidates, self.bases)
            self.options = [
                candidate.options(self.bases[name], sensitivities[name].into, sensitivities[name].out)
                for name, candidate in self.candidates.items()
            ]
        self.fixed = self.total - sum(candidate.macs() for candidate in self.candidates.values())

    def _original_outputs(self) -> Tensor:
        """Return the original's outputs (N, ...) for the held-out images; raise if no error can be measured on them."""
        if self.held_out[0].images.shape[1:] != self.calibration[0].images.shape[1:]:
            sizes = ["x".join(map(str, split[0].images.shape[1:])) for split in (self.held_out, self.calibration)]
            raise UsageError(f"held_out has images of {sizes[0]}, data of {sizes[1]}; images of one size are accepted.")
        outputs = outputs_of(self.original, self.held_out)
        finite, name = bool(outputs.isfinite().all()), type(self.original).__name__
        if not finite or not bool((outputs != outputs[0]).any()):
            problem = "the same for all" if finite else "NaN or infinite for some"
            raise SurgeryError(f"The outputs of {name} are {problem} images: no error can be measured.")
        labels = labels_of([*self.held_out, *self.calibration])
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
            low, high = int(labels.min()), int(labels.max())
            raise UsageError(f"data has labels from {low} to {high}; 0 to {outputs.shape[1] - 1} are accepted.")
        return outputs

    def _restrict(self, layers: Sequence[str] | None) -> None:
        """Keep the named candidates only; raise if a name is not a candidate."""
        for name in layers or ():
            if name in self.left_alone:
                raise SurgeryError(f"{name} {self.left_alone[name]} and cannot be factorized: do not name it.")
            if name not in self.candidates:
                raise UsageError(f"no layer is named {name!r}: {did_you_mean(name, self.candidates)}")
        if layers is not None:
            self.left_alone |= {
                name: "is not one of the named layers" for name in self.candidates if name not in layers
            }
            self.candidates = {name: layer for name, layer in self.candidates.items() if name in layers}
        if not self.candidates:
            raise SurgeryError("The network has no convolution or linear layer that can be factorized.")

    def within_macs(self, budget: float) -> Choice:
        """Return the ranks of least error within a fraction (up to 1) or number of multiply-adds."""
        allowed = int(budget * self.total if budget <= 1 else budget)
        choice = choose(self.options, allowed - self.fixed)
        if choice is None:
            least = self.fixed + path(self.options)[-1].cost
            raise SurgeryError(
                f"budget={budget:g} is {allowed:,} multiply-adds; at the lowest ranks {type(self.original).__name__} "
                f"needs {least:,} of {self.total:,}, {self.fixed:,} of them in layers that stay{self._costliest()}. "
                f"Use {math.ceil(1000 * least / self.total) / 1000} or more."
            )
        return choice

    def _costliest(self) -> str:
        """Name the layer left alone with the most multiply-adds, in brackets; empty if there is none."""
        macs = {row.name: row.macs for row in profile(self.original, self.shape).rows if row.name in self.left_alone}
        name = max(macs, key=lambda name: macs[name], default=None)
        return f" (most in {name}, which {self.left_alone[name]})" if name is not None else ""

    def within_error(self, budget: float, measure: str) -> Choice:
        """Return the cheapest ranks at which an error on the held-out images rises by at most the budget."""
        choices = path(self.options)
        best, least, before = choices[0], choices[-1].cost, self.errors(self.original)[measure]
        good, bad = RESOLUTION, -1  # the most expensive choice is the original network
        while good - bad > 1:
            middle = (good + bad) // 2
            allowed = least + (choices[0].cost - least) * middle // RESOLUTION
            choice = choose(self.options, allowed) or choices[-1]
            factorized = replace_layers(deep_copy(self.original), self.factors(choice))
            if self.errors(factorized)[measure] - before <= budget:
                best, good = choice, middle
            else:
                bad = middle
        return best

    def changed(self, choice: Choice) -> dict[str, Option]:
        """Return the options of the layers that change, in the order of the forward pass."""
        pairs = zip(self.candidates, choice.options, strict=True)
        return {name: option for name, option in pairs if option.rank_in or option.rank_out}

    def samples(self, name: str) -> int:
        """Return the number of positions in all calibration images at which a layer is sampled."""
        candidate = self.candidates[name]
        count = sum(len(batch.images) for batch in self.calibration)
        return count * min(POSITIONS * candidate.calls, candidate.positions_out)

    def factors(self, choice: Choice) -> dict[str, nn.Sequential]:
        """Return the replacement of each changed layer; by activations, fitted in order, given those before it."""
        if self.by == "weights":
            return self.unfitted(choice, self.bases)
        factors: dict[str, nn.Sequential] = {}
        factorized = deep_copy(self.original)
        for name, option in self.changed(choice).items():
            candidate = self.candidates[name]
            layers = nn.Sequential(deep_copy(candidate.layer))
            if option.rank_in:
                layers = factorize_layer(candidate.layer, self.bases[name], option.rank_in, None)
            replace_module(factorized, name, layers)
            moments = paired_moments(self.original, factorized, name, candidate, self.calibration)
            factors[name] = reconstruct(layers, moments, option.rank_out)
            replace_module(factorized, name, factors[name])
        return factors

    def unfitted(self, choice: Choice, bases: Mapping[str, Basis]) -> dict[str, nn.Sequential]:
        """Return the replacement of each changed layer without fitting."""
        options = self.changed(choice).items()
        return {n: factorize_layer(self.candidates[n].layer, bases[n], o.rank_in, o.rank_out) for n, o in options}

    def errors(self, model: nn.Module) -> dict[str, float]:
        """Return the errors: `output`, the fraction of the outputs' variance lost, and `classes`, the error rate."""
        outputs = outputs_of(model.eval() if model is self.original else deep_copy(model).eval(), self.held_out)
        errors = {"output": float((outputs - self.outputs).square().sum()) / self.variance}
        if self.labels is not None:
            errors["classes"] = float((outputs.argmax(1) != self.labels).double().mean())
        return errors

    def curve(self) -> list[dict[str, Any]]:
        """Return the errors at several budgets before fitting, by activations and by weights at the same ranks."""
        points = []
        for share in CURVE:
            choice = choose(self.options, int(share * self.total) - self.fixed)
            if choice is None:
                break
            point: dict[str, Any] = {"share": (self.fixed + choice.cost) / self.total, "lost": choice.error}
            for by, bases in {self.by: self.bases, "weights": self.weight_bases}.items():
                point[by] = self.errors(replace_layers(deep_copy(self.original), self.unfitted(choice, bases)))
            points.append(point)
        return points

    def describe(self, choice: Choice) -> list[dict[str, Any]]:
        """Return the ranks, multiply-adds and estimated error of each changed layer."""
        return [
            {
                "name": name,
                "rank_in": option.rank_in,
                "rank_out": option.rank_out,
                "channels": list(self.candidates[name].sizes[:2]),
                "macs": [self.candidates[name].macs(), option.cost],
                "lost": option.error,
            }
            for name, option in self.changed(choice).items()
        ]


def replace_layers(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Replace the named modules in place, and return the network."""
    for name, module in modules.items():
        replace_module(model, name, deep_copy(module))
    return model
