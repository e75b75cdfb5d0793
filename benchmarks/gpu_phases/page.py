"""The results of benchmarks/gpu.py as docs/gpu.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = ["page"]

HEAD = """# On a GPU

```text
PYTHONPATH=src python benchmarks/gpu.py            # checks and measurements, about 6 minutes a call
PYTHONPATH=src python benchmarks/gpu.py --small    # the same script in its smallest size, also without a GPU
```

`mlpconv train DATA --device cuda` (or `auto`, the default) trains on a GPU; `Classifier.to("cuda")` predicts on one.
The script above checks forward passes, gradients, preprocessing, augmentation, dropout and exact resume against the
CPU, then measures throughput, accuracy over time, memory and [distillation](distillation.md). Each phase runs in a
process of its own and writes to `benchmarks/results/gpu-CARD.json`. CIFAR-10 travels to a machine without a network in
the parts that `python benchmarks/gpu_data.py` writes.

"""
KINDS = (
    "forward passes and gradients of every network, preprocessing, augmentation and dropout against the CPU, "
    "predictions, exact resume, and replayed against eager steps"
)
NOTHING = """**No GPU has run it yet.** The suite runs its smallest size on the CPU. A test runs the training loop on
PyTorch's `meta` device, which refuses whatever would make a GPU wait. So nothing is known of speed, and of correctness
only what a CPU can show.
"""


def page(folder: Path) -> str:
    """Return the page from the result files of a folder; what was not measured is said."""
    cards = [
        json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("gpu-*.json")) if "-cpu" not in path.name
    ]
    return HEAD + ("\n".join(map(section, cards)) if cards else NOTHING)


def section(results: dict[str, Any]) -> str:
    """Return the section of one card."""
    machine = results.get("machine", {})
    formats = ("bf16", "tf32", "fp32")
    products = [f"{machine.get(f'matmul_{name}_tflops')} TFLOP/s in {name}" for name in formats]
    lines = [
        f"## {machine.get('card', 'Unknown card')}",
        "",
        f"PyTorch {machine.get('torch')}, CUDA {machine.get('cuda')}.",
        "",
        f"- matrix products: {', '.join(products)}",
        f"- copies: {machine.get('copy_gb_per_s')} GB/s",
        "",
        *checks(results.get("correctness", {}), results.get("engine", {})),
        *engines(results.get("engine", {})),
        *throughput(results.get("throughput", {})),
        *accuracy(results.get("accuracy", {})),
        *distill(results.get("distill", {})),
        *failures(results),
    ]
    return "\n".join(lines) + "\n"


def checks(*phases: dict[str, Any]) -> list[str]:
    """Return what was checked, and each difference."""
    found = {name: text for phase in phases for name, text in phase.get("checks", {}).items()}
    if not found:
        return []
    wrong = {name: text for name, text in found.items() if text is not True}
    lines = [f"Correctness: {len(found) - len(wrong)} of {len(found)} checks passed: {KINDS}.", ""]
    return lines + [f"- {name}: {text}" for name, text in wrong.items()] + ([""] if wrong else [])


def engines(phase: dict[str, Any]) -> list[str]:
    """Return a table of training steps by batch size: eager against replayed as a CUDA graph."""
    steps = phase.get("steps", {})
    if not steps:
        return []
    lines = [
        "Training `nin_cifar10` with batch norm and Muon in bf16, by batch size. Idle is the share of a traced step in",
        "which no kernel ran.",
        "",
        "| batch | engine | images/s | launches a step | idle |",
        "|---|---|---|---|---|",
    ]
    for batch, modes in steps.items():
        for mode, figures in modes.items():
            speed, idle = figures["images_per_second"], figures.get("idle_share")
            share = "" if idle is None else f"{idle:.0%}"
            lines.append(f"| {batch} | {mode} | {speed:,} | {figures.get('launches', '')} | {share} |")
    return [*lines, ""]


def throughput(phase: dict[str, Any]) -> list[str]:
    """Return a table of images per second and shares of the bf16 peak."""
    networks = {name: modes for name, modes in phase.items() if isinstance(modes, dict)}
    if not networks:
        return []
    lines = [
        "| network | mode | training, images/s | share of peak | inference, images/s | share of peak |",
        "|---|---|---|---|---|---|",
    ]
    for name, modes in networks.items():
        for mode, figures in modes.items():
            lines.append(f"| {name} | {mode} | {_cells(figures['training'])} | {_cells(figures['inference'])} |")
    return [*lines, ""]


def _cells(figure: dict[str, Any]) -> str:
    if "failed" in figure:
        return f"{figure['failed']} | "
    return f"{figure['images_per_second']:,} | {figure['share_of_peak']:.1%}"


def accuracy(phase: dict[str, Any]) -> list[str]:
    """Return a table of validation accuracy and seconds by recipe."""
    recipes = phase.get("recipes", {})
    if not recipes:
        return []
    lines = [
        f"| recipe ({phase['data']}) | n | validation accuracy | seconds of training | seconds to 91.2 % |",
        "|---|---|---|---|---|",
    ]
    for name, row in recipes.items():
        seconds = [run["training_seconds"] for run in row["runs"]]
        sd = f" ± {row['sd']:.2%}" if row["sd"] is not None else ""
        reached = [run["seconds_to_91.2%"] for run in row["runs"] if run.get("seconds_to_91.2%")]
        level = f"{statistics.fmean(reached):.1f} ({len(reached)} of {len(seconds)} runs)" if reached else ""
        mean = statistics.fmean(seconds)
        lines.append(f"| {name} | {len(seconds)} | {row['mean']:.2%}{sd} | {mean:.1f} | {level} |")
    if sweep := phase.get("sweep"):
        tried = [
            f"{row['accuracy']:.2%} in {row['training_seconds']:.1f} s ({named(row['settings'])})" for row in sweep
        ]
        lines += ["", f"The sweep, one seed each: {'; '.join(tried)}."]
    left_out = [f"Not run, as no time was left: {'; '.join(phase['left_out'])}.", ""] if "left_out" in phase else []
    return [*lines, "", *left_out]


def distill(phase: dict[str, Any]) -> list[str]:
    """Return what a teacher scores, and networks with and without it."""
    teacher, recipes = phase.get("teacher"), phase.get("recipes", {})
    if not teacher or not recipes:
        return []
    scores = f"has {teacher['accuracy']:.2%} validation accuracy after {teacher['all_seconds']:.0f} s"
    lines = [
        f"Distillation ({phase['data']}): the teacher, {teacher['network']} with the weights of",
        f"{teacher['weights']}, {scores}. It saw ImageNet, and so, through it, did the taught network.",
        "",
        "| network, recipe best | n | validation accuracy | seconds of training |",
        "|---|---|---|---|",
    ]
    for name, row in recipes.items():
        seconds = [run["training_seconds"] for run in row["runs"]]
        sd = f" ± {row['sd']:.2%}" if row["sd"] is not None else ""
        lines.append(f"| {name} | {len(seconds)} | {row['mean']:.2%}{sd} | {statistics.fmean(seconds):.1f} |")
    return [*lines, ""]


def named(settings: dict[str, Any]) -> str:
    """Return settings as they are typed."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def failures(results: dict[str, Any]) -> list[str]:
    """Return the phases that failed, each with its reason."""
    return [f"- {phase} failed: {content['failed']}" for phase, content in results.items() if "failed" in content]
