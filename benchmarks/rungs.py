"""The table of ladder.py: the change of each technique, with an interval over pairs of runs with the same seed."""

from __future__ import annotations

from statistics import fmean, variance
from typing import Any

__all__ = ["changes", "ladder_table", "pooled_deviation"]

NORMAL = 1.96
"""Half-width of a 95 % interval in standard deviations, which are pooled over all techniques."""
HEADER = """\
| technique | error, cumulative | change, points | error without it | change by it, points | CPU seconds |
|---|---|---|---|---|---|
"""


def ladder_table(content: dict[str, Any]) -> str:
    """Return the Markdown table: techniques added one by one, each one removed, and variations of the full recipe."""
    plans = content["result"]["plans"]
    ladder = _Ladder(plans)
    blocks = [_introduction(content, ladder.deviation), HEADER]
    blocks += [_row("none", _error(plans["floor"]), "", "", "", _seconds(plans["floor"]))]
    blocks += [ladder.rung(name) for name in ladder.rungs]
    blocks += [ladder.flipped(), *(ladder.variant(name) for name in ladder.variants)]
    return "\n" + "".join(blocks)


class _Ladder:
    """The measured plans in order, with the pooled standard deviation of all paired changes."""

    def __init__(self, plans: dict[str, Any]) -> None:
        self.plans = plans
        self.rungs = [name.removeprefix("with ") for name in plans if name.startswith("with ")]
        self.variants = [name for name in plans if name.startswith("but ")]
        self.top = f"with {self.rungs[-1]}"
        self.below = dict(zip(self.rungs, ["floor", *(f"with {name}" for name in self.rungs)], strict=False))
        self.removed = {self.rungs[-1]: self.below[self.rungs[-1]]}
        self.removed |= {name: f"without {name}" for name in self.rungs if f"without {name}" in plans}
        pairs = [(below, f"with {name}") for name, below in self.below.items() if below != "floor"]
        pairs += [(removed, self.top) for removed in self.removed.values()]
        pairs += [(self.top, name) for name in self.variants]
        self.deviation = pooled_deviation([changes(plans[first], plans[second]) for first, second in pairs])

    def rung(self, name: str) -> str:
        """Return the row of a technique: added to those above it, and removed alone from the full recipe."""
        below, plan, without = self.below[name], self.plans[f"with {name}"], self.removed.get(name)
        change = _change(self.plans[below], plan, None if below == "floor" else self.deviation)
        removed = ("not run", "")
        if without is not None:
            removed = (
                _error(self.plans[without]),
                _change(self.plans[without], self.plans[self.top], self.deviation),
            )
        return _row(name, _error(plan), change, *removed, _seconds(plan))

    def flipped(self) -> str:
        """Return the row of the full recipe with test-time augmentation."""
        top = self.plans[self.top]
        augmented = {"runs": [row | {"error": row["error_with_tta_flip"]} for row in top["runs"]]}
        error = _error({"error": top["error_with_tta_flip"]})
        return _row("test-time augmentation (flip)", error, _change(top, augmented, self.deviation), "", "", "")

    def variant(self, name: str) -> str:
        """Return the row of a variation of the full recipe."""
        plan = self.plans[name]
        change = _change(self.plans[self.top], plan, self.deviation)
        return _row(f"full recipe, {name.removeprefix('but ')}", _error(plan), change, "", "", _seconds(plan))


def _introduction(content: dict[str, Any], deviation: float) -> str:
    protocol = content["result"]["protocol"]
    return (
        f"`{content['command']}`, {content['date']}: {protocol['size']} pixels, {protocol['epochs']} epochs of "
        f"{protocol['images']:,} training images, validated on {protocol['validation_images']:,} others. "
        "Means over seeds (n). "
        f"The change between two runs of the same seed has a standard deviation of {deviation:.2f} points; ± is the "
        "95 % interval (not for the change from the baseline, whose runs vary much more). Lower is better.\n\n"
    )


def changes(first: dict[str, Any], second: dict[str, Any]) -> list[float]:
    """Return the change of the error from `first` to `second`, in points, for each common seed."""
    errors = {row["seed"]: row["error"] for row in first["runs"]}
    return [100 * (row["error"] - errors[row["seed"]]) for row in second["runs"] if row["seed"] in errors]


def pooled_deviation(groups: list[list[float]]) -> float:
    """Return the pooled standard deviation within groups; NaN if no group has two values."""
    samples = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in samples)
    return (sum((len(group) - 1) * variance(group) for group in samples) / freedom) ** 0.5 if freedom else float("nan")


def _error(plan: dict[str, Any]) -> str:
    return f"{plan['error']['mean']:.2%} ({plan['error']['n']})"


def _change(first: dict[str, Any], second: dict[str, Any], sd: float | None) -> str:
    """Return the mean change, with half of its 95 % interval if `sd` is known."""
    values = changes(first, second)
    if not values:
        return ""
    return f"{fmean(values):+.2f}" + ("" if sd is None else f" ± {NORMAL * sd / len(values) ** 0.5:.2f}")


def _seconds(plan: dict[str, Any]) -> str:
    return f"{plan['cpu_seconds']['mean']:.0f}"


def _row(*cells: str) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"
