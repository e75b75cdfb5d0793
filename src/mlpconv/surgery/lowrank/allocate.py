"""Allocate ranks to layers: the least total error for a cost, over the whole network.

Each layer has options with a cost and an error; the original layer is the most expensive and has no error. If errors
add up, the best choice at a given exchange rate of error for cost is the best option of each layer, and these options
lie on the lower convex hull of the layer's options. Descending all hulls together, by the least error per saved
multiply-add, passes through every such choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Choice", "Option", "choose", "hull", "path"]


@dataclass(frozen=True)
class Option:
    """A pair of ranks of one layer, with its cost and error."""

    cost: int
    """Multiply-adds."""
    error: float
    """Its share of the network's error; 0 for the original layer."""
    rank_in: int | None = None
    rank_out: int | None = None


@dataclass(frozen=True)
class Choice:
    """One option for each layer."""

    options: tuple[Option, ...]

    @property
    def cost(self) -> int:
        """Multiply-adds of all layers."""
        return sum(option.cost for option in self.options)

    @property
    def error(self) -> float:
        """The sum of the errors of all layers."""
        return sum(option.error for option in self.options)


def hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of error over cost, from the most expensive to the cheapest."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if not best or option.error < best[-1].error:
            while len(best) > 1 and _slope(best[-2], best[-1]) >= _slope(best[-1], option):
                best.pop()
            best.append(option)
    return best[::-1]


def _slope(cheap: Option, costly: Option) -> float:
    """Return the error per multiply-add between two options, a negative number."""
    return (costly.error - cheap.error) / (costly.cost - cheap.cost)


def path(layers: Sequence[Sequence[Option]]) -> list[Choice]:
    """Return the choices from least error to least cost; each step adds the least error per saved multiply-add."""
    hulls = [hull(options) for options in layers]
    steps = [
        (-_slope(cheap, costly), layer, index)
        for layer, options in enumerate(hulls)
        for index, (costly, cheap) in enumerate(pairwise(options), 1)
    ]
    indices = [0] * len(hulls)
    choices = [Choice(tuple(options[0] for options in hulls))]
    for _, layer, index in sorted(steps):
        indices[layer] = index
        choices.append(Choice(tuple(options[i] for options, i in zip(hulls, indices, strict=True))))
    return choices


def choose(layers: Sequence[Sequence[Option]], budget: int) -> Choice | None:
    """Return a choice of nearly least error that costs at most `budget`; None if even the cheapest costs more.

    It is the first choice of the path that fits; the rest of the budget is spent greedily where it saves most error.
    """
    fitting = next((choice for choice in path(layers) if choice.cost <= budget), None)
    if fitting is None:
        return None
    chosen = list(fitting.options)
    while True:
        left = budget - sum(option.cost for option in chosen)
        gains = [
            (chosen[layer].error - option.error, layer, option)
            for layer, options in enumerate(layers)
            for option in options
            if option.error < chosen[layer].error and option.cost - chosen[layer].cost <= left
        ]
        if not gains:
            return Choice(tuple(chosen))
        _, layer, option = max(gains, key=lambda gain: gain[0])
        chosen[layer] = option
