"""The table and the picture of results/deployed.json: one network run in every way."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

import mlpconv
from mlpconv.plots.style import ACCENT, BASE, GOOD, QUIET, new_figure, styled

__all__ = ["deployed_table", "draw_deployed"]

BATCHES = {"1": (BASE, "o"), "8": (GOOD, "s"), "64": (ACCENT, "D")}
HEADS = ("", "1 image, 1 thread", "1 image, 2 threads", "p99", "images/s in batches of 64", "start", "memory",
         "largest difference")  # fmt: skip


def deployed_table(content: dict[str, Any], image: str) -> str:
    """Return the picture and a table for each network: time of one image, throughput, start, memory, difference."""
    result, machine = content["result"], content["machine"]
    versions = ", ".join(f"{key} {machine['packages'][key]}" for key in ("torch", "onnxruntime", "openvino"))
    text = (
        f"\n`{content['command']}`,\n{content['date']}, {machine['cpu']}, {machine['cores']} cores; {versions}. Times "
    )
    text += (
        "are medians, from pixels to\nprobabilities; from the third column on with two threads. The start is the time "
    )
    text += "from the import to the first answer, the\ndifference that of probabilities from plain torch.\n\n"
    text += f"![Images per second of every way, by batch size and number of threads]({image})\n"
    for network, by_threads in result["networks"].items():
        text += f"\n**`{network}`**\n\n| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|\n"
        for way, two in by_threads["2"].items():
            text += _row(way, by_threads["1"][way], two)
    return text + "\n"


def _row(way: str, one: dict[str, Any], two: dict[str, Any]) -> str:
    if "unavailable" in one or "unavailable" in two:
        return f"| {way} | not run |" + " |" * (len(HEADS) - 2) + "\n"
    single, many = two["batches"]["1"], two["batches"]["64"]
    memory = f"{two['peak_mb']:.0f} MB" if "peak_mb" in two else ""
    cells = (
        way, f"{one['batches']['1']['p50_ms']:.2f} ms", f"{single['p50_ms']:.2f} ms", f"{single['p99_ms']:.2f} ms",
        f"{many['images_per_second']:,.0f}", f"{two['start_seconds']:.1f} s", memory,
        f"{two['largest_difference']:.0e}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


@styled
def draw_deployed(result: dict[str, Any]) -> Figure:
    """Draw images/s of every way by batch size; a row for each network, a column for each number of threads.

    The dashed line is the speed at which the multiply-adds would run as torch's fastest operation in float32.
    """
    networks = result["networks"]
    figure = new_figure(10, 1.1 + 2.75 * len(networks))
    grid = figure.add_gridspec(len(networks), 2)
    for place, (network, by_threads) in enumerate(networks.items()):
        macs = macs_of(network)
        for column, (threads, ways) in enumerate(sorted(by_threads.items())):
            axes = figure.add_subplot(grid[place, column])
            axes.set_title(f"{network}, {threads} thread{'s' * (threads != '1')}")
            ran = {way: row for way, row in ways.items() if "unavailable" not in row}
            operation = result.get("peak_operation", {}).get(threads, "matrix product")
            axes.axvline(
                result["peak_gflops"][threads] * 1e9 / (2 * macs),
                color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label=f"float32 {operation}", zorder=0,
            )  # fmt: skip
            _dots(axes, ran, named=column == 0)
    axes.set_xlabel("images/s")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def macs_of(network: str) -> int:
    """Return the multiply-adds of one image."""
    classifier = mlpconv.load(network)
    return mlpconv.analysis.profile(classifier.model, classifier.input_size).totals.macs


def _dots(axes: Axes, ways: dict[str, Any], named: bool) -> None:
    for batch, (colour, marker) in BATCHES.items():
        speeds = [row["batches"][batch]["images_per_second"] for row in ways.values()]
        label = "one image at a time" if batch == "1" else f"batches of {batch}"
        axes.plot(speeds, range(len(ways)), marker, color=colour, markersize=5, label=label, linestyle="none")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.minorticks_off()
    axes.set_yticks(range(len(ways)), list(ways) if named else [""] * len(ways))
    axes.invert_yaxis()
    axes.grid(axis="both")
    axes.tick_params(axis="y", length=0)
