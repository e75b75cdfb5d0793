"""The tables of docs/transfer.md, from their results."""

from __future__ import annotations

from typing import Any

from common import cells

__all__ = ["depth_table", "probe_table", "transfer_table"]


def probe_table(content: dict[str, Any]) -> str:
    """Return the table of linear probes, one row per folder and source network."""
    result = content["result"]
    text = f"\nTen classes of 100 images of CIFAR-100, enlarged to {result['size']} pixels, four fifths for training; "
    text += f"mean ± standard deviation over {result['splits']} random splits. `{content['command']}`, "
    text += f"{content['date']}, {result['precision']}, one thread.\n\n"
    text += cells("folder", "source", "accuracy", "scikit-learn on the same features", "CPU seconds")
    text += "|---" * 5 + "|\n"
    for folder, sources in result["folders"].items():
        for source, row in sources.items():
            both = (f"{row[key]['mean']:.1%} ± {100 * row[key]['sd']:.1f}" for key in ("accuracy", "scikit_learn"))
            text += cells(folder, f"`{source}`", *both, f"{row['cpu_seconds']:.0f}")
    return text


def transfer_table(content: dict[str, Any]) -> str:
    """Return the table of runs from pretrained weights."""
    text = (
        "\n`python benchmarks/transfer.py --tune head all --per-class 10 30 100`: runs of `mlpconv.fit`, 20 images of "
    )
    text += "each class of these folders held out; mean ± standard deviation over n splits, "
    text += f"{content['date']}, one thread.\n\n"
    text += cells("folder", "training images of a class", "initial weights", "`--tune`", "accuracy", "CPU seconds", "n")
    text += "|---" * 7 + "|\n"
    rows = {tuple(name.split(", ")): row for name, row in content["result"].items()}
    for folder, images, source, tune in sorted(rows, key=lambda row: (row[0], int(row[1].split()[0]), *row[2:])):
        row = rows[folder, images, source, tune]
        accuracy = f"{row['accuracy']['mean']:.1%} ± {100 * row['accuracy']['sd']:.1f}"
        trained = str(min(int(images.split()[0]), 80))
        seconds = f"{row['cpu_seconds']['mean']:.0f}"
        text += cells(folder, trained, f"`{source}`", f"`{tune}`", accuracy, seconds, row["accuracy"]["n"])
    return text


def depth_table(content: dict[str, Any]) -> str:
    """Return the table of how many layers are trained, and what that gains."""
    text = "\n`python benchmarks/depth.py --size 128`: EfficientNet-Lite0, 20 validation images of each class, "
    text += "and 40 of each class that no run has seen; mean ± standard deviation over n splits, "
    text += f"{content['date']}, one thread. CPU seconds of `last` and `all` come on top of those of `head`.\n\n"
    columns = ("folder", "images of a class", "pixels", "`--tune`", "validation", "unseen images", "gain, points")
    text += cells(*columns, "CPU seconds", "n") + "|---" * 9 + "|\n"
    for name, row in content["result"].items():
        kind, images, size, tune = name.split(", ")
        several = row["gain"]["n"] > 1
        accuracies = (
            f"{row[key]['mean']:.1%}" + (f" ± {100 * row[key]['sd']:.1f}" if several else "")
            for key in ("validation", "unseen")
        )
        gain = (
            "" if tune == "head" else f"{row['gain']['mean']:+.1f}" + (f" ± {row['gain']['sd']:.1f}" if several else "")
        )
        numbers = (f"{row['cpu_seconds']['mean']:.0f}", row["gain"]["n"])
        text += cells(kind, images.split()[0], size.split()[0], f"`{tune}`", *accuracies, gain, *numbers)
    return text
