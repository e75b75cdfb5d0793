"""The tables of docs/transfer.md, from their results."""

from __future__ import annotations

from typing import Any

from common import cells

__all__ = ["depth_table", "probe_table"]


def probe_table(content: dict[str, Any]) -> str:
    """Return the table of linear probes, one row per folder, source network and size."""
    result = content["result"]
    text = "\nTen classes of 100 images of CIFAR-100, enlarged from 32 pixels, four fifths for training; "
    text += f"mean ± standard deviation over {result['splits']} random splits. `{content['command']}`, "
    text += f"{content['date']}, {result['precision']}, one thread of an {content['machine']['cpu']}.\n\n"
    text += cells("folder", "source", "pixels", "accuracy", "scikit-learn on the same features", "CPU seconds")
    text += "|---" * 6 + "|\n"
    for row in result["rows"]:
        both = (f"{row[key]['mean']:.1%} ± {100 * row[key]['sd']:.1f}" for key in ("accuracy", "scikit_learn"))
        text += cells(row["folder"], f"`{row['source']}`", row["size"], *both, f"{row['cpu_seconds']:.0f}")
    return text


def depth_table(content: dict[str, Any]) -> str:
    """Return the table of how many layers are trained, and what that gains."""
    text = "\n`python benchmarks/depth.py --size 128`: EfficientNet-Lite0, 20 validation images of each class, "
    text += "and 40 of each class that no run has seen; mean ± standard deviation over n splits, "
    text += (
        f"{content['date']}, one thread of an {content['machine']['cpu']}. CPU seconds of `last` and `all` come on top "
    )
    text += "of those of `head`.\n\n"
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
