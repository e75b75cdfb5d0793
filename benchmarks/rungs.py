"""The table of the ladder: what each lever changes, with an interval over the pairs of runs of the same seed."""

from __future__ import annotations

from statistics import fmean, variance
from typing import Any

__all__ = ["changes", "ladder_table", "pooled_deviation"]

NORMAL = 1.96
"""Of a 95 % interval; the deviation is pooled over the levers, so it is known well even for few seeds."""
HEADER = """\
| lever | error, it and all above on | points | error, all on but it | points by it | CPU seconds |
|---|---|---|---|---|---|
"""


def ladder_table(content: dict[str, Any]) -> str:
    """Markdown: the rungs in turn, each left out, and what else was tried with all of them."""
    found = content["result"]["plans"]
    ladder = _Ladder(found)
    blocks = [_introduction(content, ladder.deviation), HEADER]
    blocks += [_row("none", _error(found["floor"]), "", "", "", _seconds(found["floor"]))]
    blocks += [ladder.rung(name) for name in ladder.rungs]
    blocks += [ladder.mirrored(), *(ladder.variant(name) for name in ladder.variants)]
    return "\n" + "".join(blocks)


class _Ladder:
    """The plans found, in the order of the rungs, with the deviation that all paired changes share."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.rungs = [name.removeprefix("with ") for name in found if name.startswith("with ")]
        self.variants = [name for name in found if name.startswith("but ")]
        self.top = f"with {self.rungs[-1]}"
        self.below = dict(zip(self.rungs, ["floor", *(f"with {name}" for name in self.rungs)], strict=False))
        self.removed = {self.rungs[-1]: self.below[self.rungs[-1]]}
        self.removed |= {name: f"without {name}" for name in self.rungs if f"without {name}" in found}
        pairs = [(below, f"with {name}") for name, below in self.below.items() if below != "floor"]
        pairs += [(removed, self.top) for removed in self.removed.values()]
        pairs += [(self.top, name) for name in self.variants]
        self.deviation = pooled_deviation([changes(found[before], found[after]) for before, after in pairs])

    def rung(self, name: str) -> str:
        """What a lever brings on top of those above it, and what is lost where it alone is missing."""
        below, now, without = self.below[name], self.found[f"with {name}"], self.removed.get(name)
        brings = _change(self.found[below], now, None if below == "floor" else self.deviation)
        lost = ("not run", "")
        if without is not None:
            lost = (
                _error(self.found[without]),
                _change(self.found[without], self.found[self.top], self.deviation),
            )
        return _row(name, _error(now), brings, *lost, _seconds(now))

    def mirrored(self) -> str:
        """The whole ladder, judged with mirror images as well."""
        top = self.found[self.top]
        after = {"runs": [row | {"error": row["error_with_tta_flip"]} for row in top["runs"]]}
        error = _error({"error": top["error_with_tta_flip"]})
        return _row("mirror image at the end", error, _change(top, after, self.deviation), "", "", "")

    def variant(self, name: str) -> str:
        """Everything on, and one setting otherwise."""
        found = self.found[name]
        change = _change(self.found[self.top], found, self.deviation)
        return _row(f"all, {name}", _error(found), change, "", "", _seconds(found))


def _introduction(content: dict[str, Any], deviation: float) -> str:
    protocol = content["result"]["protocol"]
    return (
        f"`{content['command']}`, {content['date']}: {protocol['size']} pixels, {protocol['epochs']} epochs of "
        f"{protocol['images']:,} training images, judged on {protocol['judged']:,} others. Means over seeds (n); "
        f"one change between two runs of the same seed has a deviation of {deviation:.2f} points, and ± is 95 % "
        "(not for the change from the floor, whose runs differ by far more). Less error is better.\n\n"
    )


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[float]:
    """Points of error from one plan to the other, a number for each seed that both have."""
    earlier = {row["seed"]: row["error"] for row in before["runs"]}
    return [100 * (row["error"] - earlier[row["seed"]]) for row in after["runs"] if row["seed"] in earlier]


def pooled_deviation(groups: list[list[float]]) -> float:
    """The deviation within groups (each around its own mean); NaN where no group has two values."""
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    return (sum((len(group) - 1) * variance(group) for group in several) / freedom) ** 0.5 if freedom else float("nan")


def _error(found: dict[str, Any]) -> str:
    return f"{found['error']['mean']:.2%} ({found['error']['n']})"


def _change(before: dict[str, Any], after: dict[str, Any], sd: float | None) -> str:
    """Mean, and half of the interval where a deviation is given."""
    values = changes(before, after)
    if not values:
        return ""
    return f"{fmean(values):+.2f}" + ("" if sd is None else f" ± {NORMAL * sd / len(values) ** 0.5:.2f}")


def _seconds(found: dict[str, Any]) -> str:
    return f"{found['cpu_seconds']['mean']:.0f}"


def _row(*cells: str) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"
