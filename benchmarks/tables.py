"""Put the measured speeds into the documents: `python benchmarks/tables.py` after a run of benchmarks/speed.py.

For every benchmarks/results/speed-CPU.json and scaling-CPU.json it draws docs/images/speed-CPU.png and
scaling-CPU.png, and writes the tables between the markers of docs/speed.md and of README.md; results/ladder.json,
longer.json and literal-cifar10.json become the tables of docs/training.md. With `--check` it writes nothing and fails
where a document says something else than the results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from common import RESULTS
from rungs import ladder_table

TOP = RESULTS.parents[1]
PAGE, TRAINING, README = TOP / "docs" / "speed.md", TOP / "docs" / "training.md", TOP / "README.md"
IMAGES = TOP / "docs" / "images"
HEADS = {"training": "Training", "inference": "Inference", "single": "Inference, one image at a time"}
BLOCK = "<!-- {name}: written by benchmarks/tables.py -->\n{text}<!-- {name}: end -->"


def load(kind: str) -> dict[str, dict[str, Any]]:
    """The results of a kind by the name of their file."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob(f"{kind}*.json"))}


def replaced(document: str, name: str, text: str) -> str:
    """The document with the text between the markers of that name; raises SystemExit where it has none."""
    pattern = BLOCK.format(name=name, text="(?:.*?)")
    made, count = re.subn(pattern, lambda _: BLOCK.format(name=name, text=text), document, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"there are {count} places for {name!r} in the document; one is needed")
    return made


def cells(*values: object) -> str:
    """A row of a table."""
    return "| " + " | ".join(str(value) for value in values) + " |\n"


def middle(found: dict[str, Any], form: str = "{:,.0f}", times: float = 1.0) -> str:
    """A median with its quartiles."""
    low, mid, high = (form.format(found[key] * times) for key in ("q1", "median", "q3"))
    return f"**{mid}** ({low}–{high})"


def speed_table(found: dict[str, Any], work: str) -> str:
    """All contenders of one kind of work, in the order in which they ran."""
    peaks = found["peak"]
    peak = ", ".join(f"{name} {middle(peaks[name], times=1e-9)}" for name in ("fp32", "bf16"))
    text = f"Matrix product, GFLOP/s: {peak}.\n\n"
    last = "input pipeline" if work == "training" else "largest difference"
    text += cells("", "images/s", "share of the peak", "times plain", "page faults an image", "memory", last)
    text += "|---|---|---|---|---|---|---|\n"
    for each in found["contenders"].values():
        if "unavailable" in each:
            text += cells(each["label"], f"not run: {each['unavailable']}", "", "", "", "", "")
            continue
        share = each["input_share"] if work == "training" else each.get("difference", 0.0)
        speed = middle(each["images_per_second"])
        if work == "single":
            speed += f", {1000 / each['images_per_second']['median']:.2f} ms"
        text += cells(
            each["label"], speed, middle(each["share_of_peak"], "{:.0f}", 100) + " %",
            f"{each['times_plain']['median']:.2f}" if "times_plain" in each else "",
            f"{each['faults_per_image']:,.0f}", f"{each['peak_bytes'] / 1e9:.1f} GB",
            f"{share:.1%}" if work == "training" else f"{share:.0e}",
        )  # fmt: skip
    return text


def section(content: dict[str, Any], image: str) -> str:
    """One machine's results: where they come from, the picture, a table a kind of work."""
    result, machine = content["result"], content["machine"]
    versions = ", ".join(f"{key} {machine['packages'][key]}" for key in ("torch", "onnxruntime", "openvino")
                         if key in machine["packages"])  # fmt: skip
    text = f"\n### {result['cpu']}, {machine['cores']} cores\n\n`{content['command']}`, {content['date']}; {versions}; "
    text += f"medians and quartiles of {result['rounds']} rounds.\n\n![Share of the peak of each contender]({image})\n"
    for work, head in HEADS.items():
        if work in result:
            text += f"\n**{head}**\n\n{speed_table(result[work], work)}"
    return text + "\n"


def scaling_section(content: dict[str, Any], image: str) -> str:
    """One machine's curves, and the table of memory."""
    result = content["result"]
    text = f"\n### {result['cpu']}: batch, image size, threads\n\n`{content['command']}`, {content['date']}.\n\n"
    text += f"![Images a second and memory over batch and image size]({image})\n\n"
    points = {f"{axis} {'all' if value == '0' else value}": works for axis in ("batch", "side", "threads")
              for value, works in result[axis].items()}  # fmt: skip
    labels = {name: each["label"] for works in points.values() for work in works.values()
              for name, each in work["contenders"].items()}  # fmt: skip
    text += cells("images/s (GB)", *labels.values()) + "|---" * (1 + len(labels)) + "|\n"
    for point, works in points.items():
        found = {name: each for work in works.values() for name, each in work["contenders"].items()}
        text += cells(point, *(_point(found.get(name, {})) for name in labels))
    return text + "\n"


def _point(found: dict[str, Any]) -> str:
    if "images_per_second" not in found:
        return "not run"
    return f"{found['images_per_second']['median']:,.0f} ({found['peak_bytes'] / 1e9:.1f})"


def summary(content: dict[str, Any], image: str) -> str:
    """What the README says of one machine: the picture and a sentence."""
    result, facts = content["result"], []
    for work, names in {"training": ("ours",), "inference": ("predict",), "single": ("predict",)}.items():
        found = result.get(work, {}).get("contenders", {})
        ours = [each for name, each in found.items() if name.startswith(names) and "unavailable" not in each]
        if not ours:
            continue
        best = max(ours, key=lambda each: each["images_per_second"]["median"])
        speed, share = best["images_per_second"]["median"], best["share_of_peak"]["median"]
        times = f", {best['times_plain']['median']:.1f} times the plain port" if "times_plain" in best else ""
        unit = f"{1000 / speed:.2f} ms an image" if work == "single" else f"{speed:,.0f} images/s"
        facts.append(f"{HEADS[work].lower()}: {unit}, {share:.0%} of the matrix product's speed{times}")
    cores = content["machine"]["cores"]
    head = f"{result['cpu']}, {cores} cores: {'; '.join(facts)} (`{content['command']}`, n = {result['rounds']}).\n"
    return f"\n{head}\n![Training and inference as shares of the peak, all contenders]({image})\n\n"


def course(content: dict[str, Any], image: str) -> str:
    """The epochs of the literal recipe: the picture, and a table of about eight of them."""
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
    """How longer runs end: a row a plan."""
    text = f"\n`{content['command']}`, {content['date']}; means over n seeds.\n\n"
    text += cells("", "error", "with test-time augmentation", "training accuracy (augmented)", "n")
    text += "|---" * 5 + "|\n"
    for name, plan in content["result"]["plans"].items():
        shares = (f"{plan[key]['mean']:.1%}" for key in ("error", "error_with_tta_flip", "train_accuracy"))
        text += cells(name, *shares, plan["error"]["n"])
    return text


def pages() -> dict[Path, str]:
    """The documents as the results would have them."""
    speeds, scalings = load("speed"), load("scaling")
    page = "".join(section(content, f"images/{name}.png") for name, content in speeds.items())
    page += "".join(scaling_section(content, f"images/{name}.png") for name, content in scalings.items())
    front = "".join(summary(content, f"docs/images/{name}.png") for name, content in speeds.items())
    made = {
        PAGE: replaced(PAGE.read_text("utf-8"), "speed", page),
        README: replaced(README.read_text("utf-8"), "speed", front),
    }
    training = TRAINING.read_text("utf-8")
    for name, content in load("ladder").items():
        training = replaced(training, name, ladder_table(content))
    for name, content in load("longer").items():
        training = replaced(training, name, longer_table(content))
    for name, content in load("literal").items():
        training = replaced(training, name, course(content, f"images/{name}.png"))
    return made | {TRAINING: training}


def main() -> int:
    """Write documents and pictures, or say which document is behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    made = pages()
    if asked.check:
        behind = [str(path.relative_to(TOP)) for path, text in made.items() if path.read_text("utf-8") != text]
        if behind:
            print(f"behind the results: {', '.join(behind)}; run python benchmarks/tables.py", file=sys.stderr)
        return int(bool(behind))
    from contenders.picture import draw_scaling, draw_speed

    from mlpconv.plots import curves, save_figure

    for kind, draw in (("speed", draw_speed), ("scaling", draw_scaling)):
        for name, content in load(kind).items():
            save_figure(draw(content["result"]), IMAGES / f"{name}.png")
    for name, content in load("literal").items():
        save_figure(curves(content["result"]["history"]), IMAGES / f"{name}.png")
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
