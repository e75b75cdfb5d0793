"""The search for ranks: a network's layers at lower ranks, what that costs, and what it loses on held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mlpconv.analysis import profile
from mlpconv.analysis.input_shape import check_input_shape
from mlpconv.errors import SurgeryError, UsageError, did_you_mean
from mlpconv.surgery.lowrank.activation_stats import PLACES, bases_of, outputs_of, paired
from mlpconv.surgery.lowrank.allocate import Choice, Option, choose, path
from mlpconv.surgery.lowrank.batches import LabelledBatch, labels_of, split
from mlpconv.surgery.lowrank.candidates import find_candidates
from mlpconv.surgery.lowrank.factors import Basis, basis_by_weights, factorize_layer, reconstruct
from mlpconv.surgery.lowrank.sensitivity import sensitivity_laws
from mlpconv.surgery.proof.accept import deep_copy
from mlpconv.surgery.report import measure_figures
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["RankSearch", "replace_layers"]

CURVE = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of the multiply-adds at which the curve is measured, where ranks can be that low."""
SEARCHED = 128
"""Costs between the least and the greatest among which the search for an error ends."""


class RankSearch:
    """A network and all that is known of its layers, while ranks are looked for."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[LabelledBatch],
        held: Sequence[LabelledBatch] | None,
        by: str,
        layers: Sequence[str] | None,
    ) -> None:
        self.by = by
        self.shape = check_input_shape(tuple(batches[0].images.shape[1:]))
        self.original = deep_copy(model).eval()
        self.fit, self.held = split(batches) if held is None else (batches, held)
        self.labels = labels_of(self.held)
        self.wanted = self._wanted()
        self.variance = float((self.wanted - self.wanted.mean(0)).square().sum())
        self.candidates, self.left = find_candidates(self.original, batches[0].images[:1])
        self._restrict(layers)
        self.total = measure_figures(model, self.shape, latency=False).macs
        self.bases = {name: basis_by_weights(each.layer) for name, each in self.candidates.items()}
        self.by_weights = self.bases
        self.options = [each.options(self.bases[name]) for name, each in self.candidates.items()]
        if by == "activations":
            self.bases = bases_of(self.original, self.fit, self.candidates)
            laws = sensitivity_laws(self.original, self.fit[:1], self.candidates, self.bases)
            pairs = [(each, self.bases[name], laws[name]) for name, each in self.candidates.items()]
            self.options = [each.options(basis, law.into, law.out) for each, basis, law in pairs]
        self.fixed = self.total - sum(each.macs() for each in self.candidates.values())

    def _wanted(self) -> Tensor:
        """(N, ...): what the original says of the held-out images; raises where that is nothing to measure by."""
        if self.held[0].images.shape[1:] != self.fit[0].images.shape[1:]:
            sizes = ["x".join(map(str, batches[0].images.shape[1:])) for batches in (self.held, self.fit)]
            raise UsageError(f"held_out has images of {sizes[0]}, data of {sizes[1]}; both must be alike.")
        found = outputs_of(self.original, self.held)
        if not bool(found.isfinite().all()) or not bool((found != found[0]).any()):
            what = "NaN or infinite for some" if not bool(found.isfinite().all()) else "the same for all"
            name = type(self.original).__name__
            raise SurgeryError(f"{name} gives outputs that are {what} images: nothing can be measured.")
        labels = labels_of([*self.held, *self.fit])
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < found.shape[1]:
            low, high = int(labels.min()), int(labels.max())
            raise UsageError(f"data has labels from {low} to {high}; from 0 to {found.shape[1] - 1} are accepted.")
        return found

    def _restrict(self, layers: Sequence[str] | None) -> None:
        for name in layers or ():
            if name in self.left:
                raise SurgeryError(f"{name} {self.left[name]}, so its rank stays: leave it out of layers.")
            if name not in self.candidates:
                raise UsageError(f"layers names {name!r}; {did_you_mean(name, self.candidates)}")
        if layers is not None:
            self.left |= {name: "was not to be changed" for name in self.candidates if name not in layers}
            self.candidates = {name: each for name, each in self.candidates.items() if name in layers}
        if not self.candidates:
            raise SurgeryError("The network has no convolution or linear layer that can be computed at a lower rank.")

    def within(self, budget: float) -> Choice:
        """The ranks that lose least within the multiply-adds."""
        allowed = int(budget * self.total if budget <= 1 else budget)
        choice = choose(self.options, allowed - self.fixed)
        if choice is None:
            least = self.fixed + path(self.options)[-1].cost
            raise SurgeryError(
                f"budget={budget:g} is {allowed:,} multiply-adds; at the lowest ranks {type(self.original).__name__} "
                f"takes {least:,} of {self.total:,}, {self.fixed:,} of them in layers that stay{self._dearest_left()}. "
                f"Give {math.ceil(1000 * least / self.total) / 1000} or more."
            )
        return choice

    def _dearest_left(self) -> str:
        """In brackets, the layer left alone that costs most; nothing where none costs anything."""
        rows = {row.name: row.macs for row in profile(self.original, self.shape).rows if row.name in self.left}
        dearest = max(rows, key=lambda name: rows[name], default=None)
        if dearest is None:
            return ""
        return f" (most in {dearest}, which {self.left[dearest]})"

    def losing(self, budget: float, what: str) -> Choice:
        """The cheapest ranks at which an error grows by no more than the budget on the held-out images."""
        choices = path(self.options)
        best, least, before = choices[0], choices[-1].cost, self.errors(self.original)[what]
        good, bad = SEARCHED, -1  # the dearest of all is the network as it is
        while good - bad > 1:
            middle = (good + bad) // 2
            allowed = least + (choices[0].cost - least) * middle // SEARCHED
            choice = choose(self.options, allowed) or choices[-1]
            changed = replace_layers(deep_copy(self.original), self.factors(choice))
            if self.errors(changed)[what] - before <= budget:
                best, good = choice, middle
            else:
                bad = middle
        return best

    def picked(self, choice: Choice) -> dict[str, Option]:
        """The layers that change, in the order of the forward pass."""
        pairs = zip(self.candidates, choice.picked, strict=True)
        return {name: option for name, option in pairs if option.rank_in or option.rank_out}

    def rows(self, name: str) -> int:
        """At how many places of all images a layer is looked at."""
        each = self.candidates[name]
        return sum(len(batch.images) for batch in self.fit) * min(PLACES * each.calls, each.places_out)

    def factors(self, choice: Choice) -> dict[str, nn.Sequential]:
        """What takes the place of each layer: by activations, fitted in order, each behind those before it."""
        if self.by == "weights":
            return self.plain(choice, self.bases)
        made: dict[str, nn.Sequential] = {}
        changed = deep_copy(self.original)
        for name, option in self.picked(choice).items():
            each = self.candidates[name]
            parts = nn.Sequential(deep_copy(each.layer))
            if option.rank_in:
                parts = factorize_layer(each.layer, self.bases[name], option.rank_in, None)
            replace_module(changed, name, parts)
            moments = paired(self.original, changed, name, each, self.fit)
            made[name] = reconstruct(parts, moments, option.rank_out)
            replace_module(changed, name, made[name])
        return made

    def plain(self, choice: Choice, bases: Mapping[str, Basis]) -> dict[str, nn.Sequential]:
        """The same without fitting."""
        picked = self.picked(choice).items()
        return {n: factorize_layer(self.candidates[n].layer, bases[n], o.rank_in, o.rank_out) for n, o in picked}

    def errors(self, model: nn.Module) -> dict[str, float]:
        """On the held-out images: `output`, the share of the outputs' variance that is lost; and `classes`."""
        outputs = outputs_of(model.eval() if model is self.original else deep_copy(model).eval(), self.held)
        found = {"output": float((outputs - self.wanted).square().sum()) / self.variance}
        if self.labels is not None:
            found["classes"] = float((outputs.argmax(1) != self.labels).double().mean())
        return found

    def curve(self) -> list[dict[str, Any]]:
        """What is lost at several budgets, by activations and at the same ranks by weights, before any fitting."""
        points = []
        for share in CURVE:
            choice = choose(self.options, int(share * self.total) - self.fixed)
            if choice is None:
                break
            point: dict[str, Any] = {"share": (self.fixed + choice.cost) / self.total, "lost": choice.error}
            for way, bases in {self.by: self.bases, "weights": self.by_weights}.items():
                point[way] = self.errors(replace_layers(deep_copy(self.original), self.plain(choice, bases)))
            points.append(point)
        return points

    def describe(self, choice: Choice) -> list[dict[str, Any]]:
        """Each layer that changes: its ranks, its multiply-adds and what it loses of its responses."""
        return [
            {
                "name": name,
                "rank_in": option.rank_in,
                "rank_out": option.rank_out,
                "channels": list(self.candidates[name].sizes[:2]),
                "macs": [self.candidates[name].macs(), option.cost],
                "lost": option.error,
            }
            for name, option in self.picked(choice).items()
        ]


def replace_layers(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """In place: the network with these modules for those of their names."""
    for name, module in modules.items():
        replace_module(model, name, deep_copy(module))
    return model
