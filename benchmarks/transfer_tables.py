"""The tables of docs/transfer.md and docs/distillation.md, from their results."""

from __future__ import annotations

from typing import Any

from common import cells

__all__ = ["depth_table", "distillation_tables", "probe_table", "transfer_table"]

DISTILLED = (
    (
        "cifar10",
        "CIFAR-10, {per_class} images a class, {validation_images:,} for validation; {epochs} epochs",
        "nin_cifar10",
    ),
    (
        "folder",
        "folder of colour images, 80 a class, {validation_images:,} for validation; {epochs} epochs",
        "nin_tiny",
    ),
)
TAUGHT = ("plain", "taught")


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


def distillation_tables(content: dict[str, Any]) -> str:
    """Return the tables of networks with and without a teacher, and of weights and temperatures."""
    result = content["result"]
    text = (
        f"\n`python benchmarks/distill.py`, {content['date']}, one thread. The teacher is EfficientNet-Lite0 with the "
    )
    text += "weights of ImageNet, whose classifier was fitted on the same training images (`--tune head`): it saw "
    text += "ImageNet, and so, through it, did the taught networks. Mean ± standard deviation over n seeds, which are "
    text += "paired; no test image was used.\n\n"
    head = ("images", "network", "alone", "taught", "gain, points", "teacher", "CPU seconds", "of the teacher", "n")
    if any(part in result for part, *_ in DISTILLED):
        text += cells(*head) + "|---" * len(head) + "|\n"
    for part, images, network in DISTILLED:
        if part in result:
            text += distillation_row(result[part], images.format(**result[part]), network)
    if "choose" in result:
        text += choice_table(result["choose"])
    return text


def distillation_row(row: dict[str, Any], images: str, network: str) -> str:
    """Return the row of a data set: accuracy alone, taught and of the teacher, and CPU seconds."""

    def sd(spread: dict[str, Any]) -> str:
        return f" ± {100 * spread['sd']:.1f}" if spread["n"] > 1 else ""

    accuracies = (f"{row[kind]['accuracy']['mean']:.1%}{sd(row[kind]['accuracy'])}" for kind in TAUGHT)
    seconds = ", ".join(f"{row[kind]['cpu_seconds']['mean']:.0f}" for kind in TAUGHT)
    gain, teacher = row["gain"], row["teacher"]
    points = f"{100 * gain['mean']:+.1f}{sd(gain)}"
    own = (f"{teacher['accuracy']:.1%}", seconds, f"{teacher['all_cpu_seconds']:.0f}")
    return cells(images, f"`{network}`", *accuracies, points, *own, gain["n"])


def choice_table(choice: dict[str, Any]) -> str:
    """Return the accuracies by weight and temperature."""
    images = f"{choice['validation_images']:,} other images"
    rows = choice["runs"]
    error = max((row["accuracy"] * (1 - row["accuracy"]) / choice["validation_images"]) ** 0.5 for row in rows)
    text = (
        f"\nWeight and temperature were chosen on {images}, with half the channels and one seed. The standard error is "
    )
    text += f"{100 * error:.1f} points, so most of these differences are noise:\n\n"
    text += cells(
        "weight, temperature",
        *(f"{row['weight']:g}, {row['temperature']:g}" if row["weight"] else "none" for row in rows),
    )
    text += "|---" * (len(rows) + 1) + "|\n"
    return text + cells("validation accuracy", *(f"{row['accuracy']:.1%}" for row in rows))


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
