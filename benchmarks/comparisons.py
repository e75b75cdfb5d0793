"""The tables and the figure of benchmarks/compare_transfer.py and pointing.py in the documents."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from common import spread
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.stats import t as student

from mlpconv.plots.style import ACCENT, BASE, GOOD, QUIET, new_figure, styled

__all__ = ["aims_table", "comparison_table", "draw_comparison", "paired_difference", "pointing_table"]

METHODS = {
    "head": "**mlpconv, `--tune head`**",
    "scikit-learn": "scikit-learn on the same features",
    "all": "**mlpconv, `--tune all`**",
    "plain": "plain loop, timm's network, all layers",
    "scratch": "mlpconv, `--from scratch`",
    "pixels": "logistic regression on pixels",
    "neighbours": "nearest neighbours on pixels",
}
PAIRS = {"scikit-learn": "head", "plain": "all", "head": "all", "scratch": "head"}
"""Each method, and the one of ours that it is compared with on the same splits."""
STYLES = {"head": (ACCENT, "o", "mlpconv, head"), "all": (ACCENT, "s", "mlpconv, all layers"),
          "plain": (BASE, "D", "plain loop, all layers"), "scratch": (GOOD, "^", "mlpconv, from scratch"),
          "pixels": (QUIET, "v", "logistic regression on pixels"),
          "neighbours": (QUIET, "x", "nearest neighbours on pixels")}  # fmt: skip
AIMS = (
    ("colour", 80, 0.92, 30), ("colour", 80, 0.95, 180), ("grey", 80, 0.80, 120), ("colour", 10, 0.75, 10),
)  # fmt: skip
"""Aims set before anything was measured: folder, training images of a class, accuracy, CPU seconds."""
Runs = Mapping[str, Mapping[str, float]]


def parsed(result: Mapping[str, Runs]) -> dict[tuple[str, int], dict[str, Runs]]:
    """Return the runs of each method by folder and training images of a class."""
    groups: dict[tuple[str, int], dict[str, Runs]] = {}
    for key, runs in result.items():
        kind, images, method = key.split(", ")
        groups.setdefault((kind, min(int(images.split()[0]), 80)), {})[method] = runs
    return {key: groups[key] for key in sorted(groups)}


def paired_difference(runs: Runs, others: Runs, name: str = "test") -> tuple[float, float | None, int]:
    """Return the mean difference on common splits, half its 95 % interval (None for one) and the number of splits."""
    differences = [runs[seed][name] - others[seed][name] for seed in sorted(set(runs) & set(others))]
    count = len(differences)
    if count < 2:
        return fmean(differences or [0.0]), None, count
    return fmean(differences), float(student.ppf(0.975, count - 1)) * stdev(differences) / count**0.5, count


def mean_of(runs: Runs, name: str) -> dict[str, float | int] | None:
    """Return the spread of a measurement over the splits that have it."""
    values = [row[name] for row in runs.values() if name in row]
    return spread(values) if values else None


def comparison_table(content: Mapping[str, Any]) -> str:
    """Return the table of all methods, one row per folder, number of images and method."""
    text = "\n`python benchmarks/compare_transfer.py --per-class 10 30 100`: the same folders, 20 images of each class "
    text += "held out. "
    text += f"Accuracy on 1,000 other images, mean ± standard deviation over n splits, {content['date']}, "
    text += "one thread of an "
    text += f"{content['machine']['cpu']}; differences on the same splits, with their 95 % interval.\n\n"
    text += "| folder | training images of a class | method | accuracy | difference, points | CPU seconds | n |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for (kind, images), methods in parsed(content["result"]).items():
        for method in (name for name in METHODS if name in methods):
            runs = methods[method]
            accuracy, seconds = mean_of(runs, "test"), mean_of(runs, "cpu_seconds")
            assert accuracy is not None
            deviation = f" ± {100 * accuracy['sd']:.1f}" if accuracy["n"] > 1 else ""
            cells = [kind, images, METHODS[method], f"{accuracy['mean']:.1%}{deviation}"]
            cells.append(difference_to(method, methods))
            cells.append("" if seconds is None else f"{seconds['mean']:.0f}" if seconds["mean"] >= 1 else "< 1")
            text += "| " + " | ".join(str(cell) for cell in [*cells, accuracy["n"]]) + " |\n"
    return text


def aims_table(result: Mapping[str, Runs]) -> str:
    """Return the aims, each with our most accurate method within its time, or the fastest if none is."""
    text = "\n| folder | training images of a class | aim | measured |\n|---|---|---|---|\n"
    groups = parsed(result)
    for kind, images, accuracy, seconds in AIMS:
        found = []
        for method in ("head", "all"):
            runs = groups.get((kind, images), {}).get(method, {})
            reached, spent = mean_of(runs, "test"), mean_of(runs, "cpu_seconds")
            if reached is not None and spent is not None:
                found.append((spent["mean"] <= seconds, reached["mean"], spent["mean"], method))
        measured = "not measured"
        if found:
            _, mean, time, method = max(row for row in found if row[0]) if any(row[0] for row in found) else min(found)
            verdict = "reached" if mean >= accuracy and time <= seconds else "missed"
            measured = f"{verdict}: {mean:.1%} in {time:.0f} s, `--tune {method}`"
        text += f"| {kind} | {images} | {accuracy:.0%} in {seconds} s | {measured} |\n"
    return text


def difference_to(method: str, methods: Mapping[str, Runs]) -> str:
    """Return the paired difference of a method from the one it is compared with, as text."""
    other = PAIRS.get(method)
    if other is None or other not in methods:
        return ""
    mean, half, count = paired_difference(methods[method], methods[other])
    if not count:
        return ""
    points = round(100 * mean, 1) + 0.0  # no -0.0
    interval = "" if half is None else f" ± {100 * half:.1f}"
    return f"{points:+.1f}{interval} from `{other}` (n = {count})"


@styled
def draw_comparison(result: Mapping[str, Runs]) -> Figure:
    """Draw accuracy against CPU seconds, one panel per folder; a line joins the numbers of images of a method."""
    groups = parsed(result)
    kinds = sorted({kind for kind, _ in groups})
    figure = new_figure(9, 4.2)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.set_title(f"{kind}, ten classes")
        for method, (colour, marker, label) in STYLES.items():
            points = []
            for images in sorted(images for folder, images in groups if folder == kind):
                runs = groups[kind, images].get(method, {})
                accuracy, seconds = mean_of(runs, "test"), mean_of(runs, "cpu_seconds")
                if accuracy is not None and seconds is not None:
                    points.append((max(seconds["mean"], 0.01), accuracy["mean"], accuracy["sd"], images))
            if points:
                times, means, deviations, counts = (list(column) for column in zip(*points, strict=True))
                errors = [100 * deviation for deviation in deviations]
                axes.errorbar(times, [100 * mean for mean in means], errors, color=colour, marker=marker, label=label,
                              linewidth=1, elinewidth=1, markersize=6)  # fmt: skip
                for x, y, count in zip(times, means, counts, strict=True):
                    place = (-16, -3) if method == "all" else (6, -11)  # `all` and `plain` take about the same time
                    axes.annotate(str(count), (x, 100 * y), place, textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("CPU seconds, one thread")
        axes.grid(axis="y")
    panels[0].set_ylabel("accuracy on 1,000 other images, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def pointing_table(content: Mapping[str, Any]) -> str:
    """Return the table of where class maps point, one row per network and method."""
    mosaics = next(iter(content["result"].values()))["mosaics"]
    text = f"\n`{content['command']}`, {content['date']}: {mosaics} mosaics of each network, four classes each; 95 % "
    text += "intervals; CPU milliseconds for the maps of the four classes of one image, one thread.\n\n"
    text += (
        "| network | image | map | method | largest value in the right quarter | CPU ms |\n|---|---|---|---|---|---|\n"
    )
    for name, row in content["result"].items():
        height, width = row["map"]
        for method, found in row["methods"].items():
            interval = f"{found['accuracy']:.1%} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
            shape = f"{height}x{width}"
            text += f"| `{name}` | {row['side']} | {shape} | {method} | {interval} | {found['cpu_ms']:.1f} |\n"
    return text
