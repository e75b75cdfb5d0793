"""The tables of distill.py: networks with and without a teacher, and the weights and temperatures that were tried."""

from __future__ import annotations

from typing import Any

from common import cells

__all__ = ["distillation_tables"]

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
