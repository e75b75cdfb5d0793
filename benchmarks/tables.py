"""Write the published measurements into the documents: `python benchmarks/tables.py`.

For each benchmarks/results/speed-CPU.json and scaling-CPU.json it draws docs/images/speed-CPU.png and scaling-CPU.png,
and writes the tables between the markers of docs/speed.md and README.md. results/ladder.json, longer.json and
literal-cifar10.json become the tables of docs/training.md, probe.json, depth.json and compare_transfer.json (with a
figure) those of docs/transfer.md, distill.json those of docs/distillation.md, and pointing.json that of docs/maps.md.
With `--check` it writes nothing and exits with 1 if a document differs from the results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, cells
from comparisons import aims_table, comparison_table, draw_comparison, pointing_table
from deployed_report import deployed_table, draw_deployed
from rungs import ladder_table
from taught import distillation_tables
from transfer_tables import depth_table, probe_table

TOP = RESULTS.parents[1]
PAGE, TRAINING, README = TOP / "docs" / "speed.md", TOP / "docs" / "training.md", TOP / "README.md"
TRANSFER, DISTILLATION, MAPS, EXPORT = (
    TOP / "docs" / f"{name}.md" for name in ("transfer", "distillation", "maps", "export")
)
IMAGES = TOP / "docs" / "images"
HEADS = {"training": "Training", "inference": "Inference", "single": "Inference, one image at a time"}
BLOCK = "<!-- {name}: written by benchmarks/tables.py -->\n{text}<!-- {name}: end -->"


def load(kind: str) -> dict[str, dict[str, Any]]:
    """Return the published results of a kind by the name of their file."""
    paths = sorted(path for path in RESULTS.glob("*.json") if path.stem.partition("-")[0] == kind)
    return {path.stem: json.loads(path.read_text("utf-8")) for path in paths}


def replaced(document: str, name: str, text: str) -> str:
    """Return the document with `text` between the markers `name`; raise SystemExit if the markers are missing."""
    pattern = BLOCK.format(name=name, text="(?:.*?)")
    updated, count = re.subn(pattern, lambda _: BLOCK.format(name=name, text=text), document, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"the document has {count} marked blocks {name!r}; expected one")
    return updated


def middle(spread: dict[str, Any], form: str = "{:,.0f}", times: float = 1.0) -> str:
    """Format a median with its quartiles."""
    low, mid, high = (form.format(spread[key] * times) for key in ("q1", "median", "q3"))
    return f"**{mid}** ({low}–{high})"


def speed_table(result: dict[str, Any], work: str) -> str:
    """Return the table of all contenders of one kind of work, in the order in which they ran."""
    peaks = result["peak"]
    peak = ", ".join(f"{name} {middle(peaks[name], times=1e-9)}" for name in ("fp32", "bf16"))
    text = f"Matrix product, GFLOP/s: {peak}.\n\n"
    last = "input pipeline" if work == "training" else "largest difference"
    text += cells("", "images/s", "share of peak", "vs plain port", "page faults per image", "peak memory", last)
    text += "|---|---|---|---|---|---|---|\n"
    for row in result["contenders"].values():
        if "unavailable" in row:
            text += cells(row["label"], f"not run: {row['unavailable']}", "", "", "", "", "")
            continue
        share = row["input_share"] if work == "training" else row.get("difference", 0.0)
        speed = middle(row["images_per_second"])
        if work == "single":
            speed += f", {1000 / row['images_per_second']['median']:.2f} ms"
        text += cells(
            row["label"], speed, middle(row["share_of_peak"], "{:.0f}", 100) + " %",
            f"{row['times_plain']['median']:.2f}×" if "times_plain" in row else "",
            f"{row['faults_per_image']:,.0f}", f"{row['peak_bytes'] / 1e9:.1f} GB",
            f"{share:.1%}" if work == "training" else f"{share:.0e}",
        )  # fmt: skip
    return text


def section(content: dict[str, Any], image: str) -> str:
    """Return the section of one machine: command, plot, and a table for each kind of work."""
    result, machine = content["result"], content["machine"]
    versions = ", ".join(f"{key} {machine['packages'][key]}" for key in ("torch", "onnxruntime", "openvino")
                         if key in machine["packages"])  # fmt: skip
    text = f"\n### {result['cpu']}, {machine['cores']} cores\n\n`{content['command']}`, {content['date']}; {versions}; "
    text += f"median (quartiles) of {result['rounds']} rounds.\n\n![Share of peak of each contender]({image})\n"
    for work, head in HEADS.items():
        if work in result:
            text += f"\n**{head}**\n\n{speed_table(result[work], work)}"
    return text + "\n"


def scaling_section(content: dict[str, Any], image: str) -> str:
    """Return the scaling section of one machine: plot, and a table of throughput and memory."""
    result = content["result"]
    text = f"\n### {result['cpu']}: batch, image size, threads\n\n`{content['command']}`, {content['date']}.\n\n"
    text += f"![Throughput and peak memory by batch size and image size]({image})\n\n"
    points = {f"{axis} {'all' if value == '0' else value}": works for axis in ("batch", "side", "threads")
              for value, works in result[axis].items()}  # fmt: skip
    labels = {name: row["label"] for works in points.values() for work in works.values()
              for name, row in work["contenders"].items()}  # fmt: skip
    text += cells("images/s (GB)", *labels.values()) + "|---" * (1 + len(labels)) + "|\n"
    for point, works in points.items():
        contenders = {name: row for work in works.values() for name, row in work["contenders"].items()}
        text += cells(point, *(_point(contenders.get(name, {})) for name in labels))
    return text + "\n"


def _point(contender: dict[str, Any]) -> str:
    if "images_per_second" not in contender:
        return "not run"
    return f"{contender['images_per_second']['median']:,.0f} ({contender['peak_bytes'] / 1e9:.1f})"


def networks_section(content: dict[str, Any]) -> str:
    """Return the tables of inference with the shipped ImageNet networks on one machine."""
    result, machine = content["result"], content["machine"]
    text = f"\n### {result['cpu']}, {machine['cores']} cores: the ImageNet networks\n\n`{content['command']}`, "
    text += f"{content['date']}; median (quartiles) of {result['rounds']} rounds.\n"
    for name, works in result["networks"].items():
        for work in (key for key in HEADS if key in works):
            side = works["side"]
            text += f"\n**`{name}`, {side}x{side} pixels: {HEADS[work].lower()}**\n\n{speed_table(works[work], work)}"
    return text


def summary(content: dict[str, Any], image: str) -> str:
    """Return the README's section of one machine: a table of our best contenders, and the plot."""
    result = content["result"]
    text = cells("", "speed", "share of peak", "vs plain PyTorch") + "|---|---|---|---|\n"
    for work, names in {"training": ("ours",), "inference": ("predict",), "single": ("predict",)}.items():
        contenders = result.get(work, {}).get("contenders", {})
        ours = [row for name, row in contenders.items() if name.startswith(names) and "unavailable" not in row]
        if not ours:
            continue
        best = max(ours, key=lambda row: row["images_per_second"]["median"])
        speed, share = best["images_per_second"]["median"], best["share_of_peak"]["median"]
        times = f"{best['times_plain']['median']:.1f}×" if "times_plain" in best else ""
        unit = f"{1000 / speed:.2f} ms per image" if work == "single" else f"{speed:,.0f} images/s"
        text += cells(HEADS[work].lower(), f"**{unit}**", f"{share:.0%}", times)
    cores, command = content["machine"]["cores"], content["command"]
    source = f"{result['cpu']}, {cores} cores; `{command}`, median of {result['rounds']} rounds."
    return f"\n{text}\n{source}\n\n![Training and inference speed of all contenders, as shares of peak]({image})\n\n"


def course(content: dict[str, Any], image: str) -> str:
    """Return the section of the literal recipe: training curves, and a table of about eight epochs."""
    result, machine = content["result"], content["machine"]
    rows = result["history"]
    every = max(1, -(-len(rows) // 8))
    shown = [row for row in rows if row["epoch"] in (1, len(rows)) or row["epoch"] % every == 0]
    text = f"\n`{content['command']}`, {content['date']}, {machine['cores']} cores: {len(rows)} of "
    text += f"{result['recipe']['epochs']} epochs, with `--on-collapse {result['on_collapse']}`.\n\n"
    text += f"![Loss and error over the epochs of the literal recipe]({image})\n\n"
    text += cells("epoch", *(row["epoch"] for row in shown)) + "|---" * (1 + len(shown)) + "|\n"
    for label, name in {"training accuracy": "train_accuracy", "validation accuracy": "val_accuracy"}.items():
        text += cells(label, *(f"{row[name]:.1%}" for row in shown))
    return text + cells("CPU minutes", *(f"{row['cpu_seconds'] / 60:.0f}" for row in shown))


def longer_table(content: dict[str, Any]) -> str:
    """Return the table of longer runs, one row per schedule."""
    text = f"\n`{content['command']}`, {content['date']}; means over n seeds.\n\n"
    text += cells("", "validation error", "with test-time augmentation", "training accuracy (augmented)", "n")
    text += "|---" * 5 + "|\n"
    for name, plan in content["result"]["plans"].items():
        shares = (f"{plan[key]['mean']:.1%}" for key in ("error", "error_with_tta_flip", "train_accuracy"))
        text += cells(name, *shares, plan["error"]["n"])
    return text


def pages() -> dict[Path, str]:
    """Return each document as it should read, given the published results."""
    speeds, scalings = load("speed"), load("scaling")
    page = "".join(section(content, f"images/{name}.png") for name, content in speeds.items())
    page += "".join(scaling_section(content, f"images/{name}.png") for name, content in scalings.items())
    front = "".join(summary(content, f"docs/images/{name}.png") for name, content in speeds.items())
    networks = "".join(networks_section(content) for content in load("networks").values())
    documents = {
        PAGE: replaced(replaced(PAGE.read_text("utf-8"), "speed", page), "networks", networks),
        README: replaced(README.read_text("utf-8"), "speed", front),
    }
    for path, kind, table in TABLES:
        for name, content in load(kind).items():
            text = documents.get(path) or path.read_text("utf-8")
            documents[path] = replaced(text, name, table(content, f"images/{name}.png"))
    comparison = load("compare_transfer")["compare_transfer"]
    transfer = replaced(documents[TRANSFER], "comparison", comparison_table(comparison))
    documents[TRANSFER] = replaced(transfer, "aims", aims_table(comparison["result"]))
    return documents


TABLES: tuple[tuple[Path, str, Callable[[dict[str, Any], str], str]], ...] = (
    (TRAINING, "ladder", lambda content, _: ladder_table(content)),
    (TRAINING, "longer", lambda content, _: longer_table(content)),
    (TRAINING, "literal", course),
    (TRANSFER, "probe", lambda content, _: probe_table(content)),
    (TRANSFER, "depth", lambda content, _: depth_table(content)),
    (DISTILLATION, "distill", lambda content, _: distillation_tables(content)),
    (MAPS, "pointing", lambda content, _: pointing_table(content)),
    (EXPORT, "deployed", deployed_table),
)
"""The page, the kind of the results, and the text from a result and the path of its picture."""


def main() -> int:
    """Write documents and plots, or check that the documents match the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a document is out of date")
    arguments = parser.parse_args()
    documents = pages()
    if arguments.check:
        outdated = [str(path.relative_to(TOP)) for path, text in documents.items() if path.read_text("utf-8") != text]
        if outdated:
            print(f"out of date: {', '.join(outdated)}; run python benchmarks/tables.py", file=sys.stderr)
        return int(bool(outdated))
    from contenders.picture import draw_scaling, draw_speed

    from mlpconv.plots import curves, save_figure

    for kind, draw in (("speed", draw_speed), ("scaling", draw_scaling), ("deployed", draw_deployed)):
        for name, content in load(kind).items():
            save_figure(draw(content["result"]), IMAGES / f"{name}.png")
    for name, content in load("literal").items():
        save_figure(curves(content["result"]["history"]), IMAGES / f"{name}.png")
    figure = draw_comparison(load("compare_transfer")["compare_transfer"]["result"])
    save_figure(figure, IMAGES / "compare_transfer.png")
    for path, text in documents.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
