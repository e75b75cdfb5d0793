"""The tables of the distillation benchmark."""

from __future__ import annotations

from typing import Any

from common import spread
from taught import distillation_tables


def runs(*accuracies: float) -> dict[str, Any]:
    return {"accuracy": spread(list(accuracies)), "cpu_seconds": spread([61.0] * len(accuracies))}


def test_gains_stand_beside_the_teacher() -> None:
    teacher = {"accuracy": 0.9, "all_cpu_seconds": 17.6}
    row = {
        "epochs": 40,
        "validation_images": 200,
        "teacher": teacher,
        "plain": runs(0.7, 0.8),
        "taught": runs(0.8, 0.8),
    }
    choice = [
        {"weight": 0.0, "temperature": None, "accuracy": 0.5},
        {"weight": 0.9, "temperature": 8.0, "accuracy": 0.6},
    ]
    result = {"folder": row | {"gain": spread([0.1, 0.0])}, "choose": {"validation_images": 100, "runs": choice}}
    text = distillation_tables({"date": "a day", "result": result})
    assert "| 75.0% ± 7.1 | 80.0% ± 0.0 | +5.0 ± 7.1 | 90.0% | 61, 61 | 18 | 2 |" in text
    assert "| weight, temperature | none | 0.9, 8 |" in text
    assert "standard error is 5.0 points" in text
    assert "CIFAR-10" not in text
