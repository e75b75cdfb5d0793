"""Which layer gets which rank: the least error for a cost, over the whole network.

Each layer has options, each with a cost and an error; the layer as it is costs most and errs by nothing. Where the
errors add up, the best choices of the network at a price of error for cost are the best of each layer, and these lie on
the lower convex hulls of the layers' options. A walk down all hulls together, the best bargain first, passes through
every such choice: a curve of cost against error that only falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Choice", "Option", "choose", "hull", "path"]


@dataclass(frozen=True)
class Option:
    """One way to compute a layer."""

    cost: int
    """Multiply-adds."""
    error: float
    """What it adds to the network's error; 0 for the layer as it is."""
    rank_in: int | None = None
    rank_out: int | None = None


@dataclass(frozen=True)
class Choice:
    """One option for each layer."""

    picked: tuple[Option, ...]

    @property
    def cost(self) -> int:
        """Multiply-adds of all layers."""
        return sum(option.cost for option in self.picked)

    @property
    def error(self) -> float:
        """The errors of all layers, added."""
        return sum(option.error for option in self.picked)


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of error over cost, from the dearest (least error) to the cheapest."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if not best or option.error < best[-1].error:
            while len(best) > 1 and _slope(best[-2], best[-1]) >= _slope(best[-1], option):
                best.pop()
            best.append(option)
    return best[::-1]


def _slope(cheap: Option, dear: Option) -> float:
    """Error per multiply-add between two options; negative."""
    return (dear.error - cheap.error) / (dear.cost - cheap.cost)


def path(layers: Sequence[Sequence[Option]]) -> list[Choice]:
    """From the network with least error to the cheapest, each step the one that saves most for its error."""
    hulls = [hull(options) for options in layers]
    steps = [
        (-_slope(cheap, dear), layer, place)
        for layer, options in enumerate(hulls)
        for place, (dear, cheap) in enumerate(pairwise(options), 1)
    ]
    at = [0] * len(hulls)
    choices = [Choice(tuple(options[0] for options in hulls))]
    for _, layer, place in sorted(steps):
        at[layer] = place
        choices.append(Choice(tuple(options[i] for options, i in zip(hulls, at, strict=True))))
    return choices


def choose(layers: Sequence[Sequence[Option]], budget: int) -> Choice | None:
    """The choice of least error, nearly, that costs at most `budget`; None where even the cheapest costs more.

    It is the first of the path that fits, and what is left of the budget is spent where it gains most.
    """
    fitting = next((choice for choice in path(layers) if choice.cost <= budget), None)
    if fitting is None:
        return None
    picked = list(fitting.picked)
    while True:
        left = budget - sum(option.cost for option in picked)
        gains = [
            (picked[layer].error - option.error, layer, option)
            for layer, options in enumerate(layers)
            for option in options
            if option.error < picked[layer].error and option.cost - picked[layer].cost <= left
        ]
        if not gains:
            return Choice(tuple(picked))
        _, layer, option = max(gains, key=lambda gain: gain[0])
        picked[layer] = option
