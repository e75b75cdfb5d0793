"""The table of the ladder: what each lever changes, with an interval over the pairs of runs of the same seed."""

from __future__ import annotations

from statistics import fmean, variance
from typing import Any

__all__ = ["changes", "ladder_table", "pooled_deviation"]

NORMAL = 1.96
"""Of a 95 % interval; the deviation is pooled over the levers, so it is known well even for few seeds."""


def ladder_table(content: dict[str, Any]) -> str:
    """Markdown: the rungs in turn, and each left out."""
    found, protocol = content["result"]["plans"], content["result"]["protocol"]
    rungs = [name.removeprefix("with ") for name in found if name.startswith("with ")]
    steps = list(zip(["floor", *(f"with {name}" for name in rungs)], (f"with {name}" for name in rungs), strict=False))
    top, removals = f"with {rungs[-1]}", {f"with {rungs[-1]}": steps[-1][0]}
    removals |= {f"with {name}": f"without {name}" for name in rungs if f"without {name}" in found}
    pairs = [*steps, *((without, top) for without in removals.values())]
    pairs += [(top, name) for name in found if name.startswith("but ")]
    sd = pooled_deviation([changes(found[before], found[after]) for before, after in pairs if before != "floor"])
    text = f"`{content['command']}`, {content['date']}: {protocol['size']} pixels, {protocol['epochs']} epochs of "
    text += f"{protocol['images']:,} training images, judged on {protocol['judged']:,} others. Means over seeds (n); "
    text += f"one change between two runs of the same seed has a deviation of {sd:.2f} points, and ± is 95 % "
    text += "(not for the change from the floor, whose runs differ by far more). Less error is better.\n\n"
    text += "| lever | error, it and all above on | points | error, all on but it | points by it | CPU seconds |\n"
    text += "|---|---|---|---|---|---|\n"
    floor = found["floor"]
    text += f"| none | {_error(floor)} | | | | {floor['cpu_seconds']['mean']:.0f} |\n"
    for name, (before, now) in zip(rungs, steps, strict=True):
        cells = [name, _error(found[now]), _change(found[before], found[now], None if before == "floor" else sd)]
        without = removals.get(now)
        cells += [_error(found[without]), _change(found[without], found[top], sd)] if without else ["not run", ""]
        text += "| " + " | ".join([*cells, f"{found[now]['cpu_seconds']['mean']:.0f}"]) + " |\n"
    mirrored = {"runs": [row | {"error": row["error_with_tta_flip"]} for row in found[top]["runs"]]}
    cells = [_error({"error": found[top]["error_with_tta_flip"]}), _change(found[top], mirrored, sd)]
    text += "| " + " | ".join(["mirror image at the end", *cells]) + " | | | |\n"
    for name in (each for each in found if each.startswith("but ")):
        cells = [f"all, {name}", _error(found[name]), _change(found[top], found[name], sd)]
        text += "| " + " | ".join([*cells, "", "", f"{found[name]['cpu_seconds']['mean']:.0f}"]) + " |\n"
    return "\n" + text


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
