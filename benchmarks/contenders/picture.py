"""Plots of the speed benchmark: bars with quartiles, and curves over batch size and image size."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from contenders import CONTENDERS
from mlpconv.plots.style import ACCENT, BASE, QUIET, new_figure, styled

__all__ = ["draw_scaling", "draw_speed"]

TITLES = {
    "training": "Training, batches of {batch}",
    "inference": "Inference, batches of {batch}",
    "single": "Inference, one image at a time",
}
COLOURS = {"ours": ACCENT, "engine": ACCENT, "model": ACCENT, "predict": ACCENT, "plain": QUIET, "eager": QUIET}
OTHERS = BASE
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1}


def colour(name: str) -> str:
    """Return the colour of a contender: ours, the plain port, or another engine."""
    return COLOURS.get(name.split("-", maxsplit=1)[0], OTHERS)


@styled
def draw_speed(result: dict[str, Any]) -> Figure:
    """Draw one panel per kind of work: the speed of each contender as a share of the matrix product."""
    panels = {work: ran(result[work]) for work in TITLES if work in result}
    figure = new_figure(9, 0.9 + sum(0.55 + 0.27 * len(rows) for rows in panels.values()))
    grid = figure.add_gridspec(len(panels), 1, height_ratios=[1 + len(rows) for rows in panels.values()])
    for position, (work, rows) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[position])
        axes.set_title(TITLES[work].format(batch=result["batch"]))
        _bars(axes, rows, in_time=work == "single")
    axes.set_xlabel("share of the matrix product in the same round, %;  ×: times the plain port")
    return figure


def ran(results: dict[str, Any]) -> dict[str, Any]:
    """Return the contenders that could run, the fastest first."""
    available = {name: row for name, row in results["contenders"].items() if "unavailable" not in row}
    return dict(sorted(available.items(), key=lambda item: -item[1]["images_per_second"]["median"]))


def _bars(axes: Axes, rows: dict[str, Any], in_time: bool) -> None:
    for place, (name, row) in enumerate(rows.items()):
        share, speed = row["share_of_peak"], row["images_per_second"]["median"]
        middle = 100 * share["median"]
        whiskers = [[middle - 100 * share["q1"]], [100 * share["q3"] - middle]]
        axes.barh(place, middle, 0.72, color=colour(name), alpha=0.85, xerr=whiskers, ecolor=QUIET)
        text = f"{1000 / speed:.2f} ms" if in_time else f"{speed:,.0f} images/s"
        if "times_plain" in row:
            text += f",  {row['times_plain']['median']:.1f} ×"
        axes.text(100 * share["q3"] + 1.5, place, text, va="center", fontsize=9, color=QUIET, bbox=CLEAR)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, 125)
    axes.set_xticks(range(0, 101, 20))
    axes.axvline(100, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


@styled
def draw_scaling(result: dict[str, Any]) -> Figure:
    """Draw the throughput and peak memory of each contender over batch size and image size."""
    axes_of = {"batch": "batch size", "side": "image side, pixels"}
    figure = new_figure(9, 7)
    grid = figure.add_gridspec(2, len(axes_of))
    for column, (axis, label) in enumerate(axes_of.items()):
        top, bottom = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
        for name in _labels(result[axis]):
            points = [(int(value), rows[name]) for value, rows in _rows(result[axis]).items() if name in rows]
            values = [value for value, _ in points]
            top.plot(values, [row["images_per_second"]["median"] for _, row in points], **_style(name))
            bottom.plot(values, [row["peak_bytes"] / 1e9 for _, row in points], **_style(name))
        for axes, title in ((top, "Throughput, images/s"), (bottom, "Peak memory, GB")):
            axes.set_title(title)
            _logarithmic(axes, [int(value) for value in result[axis]], label)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _style(name: str) -> dict[str, Any]:
    """Return the line style: the colour is the contender, circles are training, squares inference, dashes fp32."""
    contender = CONTENDERS[name]
    style = {"color": colour(name), "markersize": 4, "label": f"{contender.work}: {contender.label}"}
    style |= {"marker": "o" if contender.work == "training" else "s"}
    return style | {"linestyle": "--" if name.endswith("fp32") else "-"}


def _logarithmic(axes: Axes, values: list[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xlabel(label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.grid(axis="y")


def _rows(points: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, for each value of an axis, the contenders of all kinds that could run."""
    return {value: {n: c for work in works.values() for n, c in ran(work).items()} for value, works in points.items()}


def _labels(points: dict[str, Any]) -> dict[str, str]:
    return {name: row["label"] for rows in _rows(points).values() for name, row in rows.items()}
