"""Run the scripts in examples/; `make demo` runs the remaining one."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

DIGITS = [0, 0, 0, 0, 1, 2, 2, 5, 6, 6, 7]
"""Digits in the image; on another CPU, training rounds differently and may confuse some."""
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> ModuleType:
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_find_digits_detects_every_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, detections = example("find_digits"), []
    draw = script.draw
    monkeypatch.setattr(script, "draw", lambda *args: detections.extend(script.detections(args[1])) or draw(*args))
    script.main(str(tmp_path / "found.png"))
    assert len(detections) == len(DIGITS)
    assert sum((Counter(digit for *_, digit in detections) & Counter(DIGITS)).values()) >= len(DIGITS) - 2
    printed = capsys.readouterr().out
    assert float(printed.split("separate windows: ")[1].split()[0]) < 1e-3
    with Image.open(tmp_path / "found.png") as image:
        assert image.width > 1000


def test_a_teacher_is_compared_with_none(capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = example("teach").main(epochs=4)
    assert list(accuracies) == ["teacher", "alone", "taught"]
    assert accuracies["teacher"] > 0.97
    assert accuracies["alone"] != accuracies["taught"]
    assert f"teacher  {accuracies['teacher']:.1%}" in capsys.readouterr().out


def test_receptive_field_is_drawn(tmp_path: Path) -> None:
    example("receptive_field").main(str(tmp_path / "field.png"))
    with Image.open(tmp_path / "field.png") as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert colours is not None and len(colours) > 1000
