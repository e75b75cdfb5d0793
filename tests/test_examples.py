"""The scripts in examples/ run, and show what they say; `make demo` runs the one that is not here."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

DIGITS = [0, 0, 0, 0, 1, 2, 2, 5, 6, 6, 7]
"""In the picture that is looked at; another CPU rounds otherwise in training, and may take one for another."""
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_digit_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, found = example("find_digits"), []
    draw = script.draw
    monkeypatch.setattr(script, "draw", lambda *given: found.extend(script.found_in(given[1])) or draw(*given))
    script.main(str(tmp_path / "found.png"))
    assert len(found) == len(DIGITS)
    assert sum((Counter(digit for *_, digit in found) & Counter(DIGITS)).values()) >= len(DIGITS) - 2
    printed = capsys.readouterr().out
    assert float(printed.split("window after window: ")[1].split()[0]) < 1e-3
    with Image.open(tmp_path / "found.png") as image:
        assert image.width > 1000


def test_a_field_is_drawn(tmp_path: Path) -> None:
    example("receptive_field").main(str(tmp_path / "field.png"))
    with Image.open(tmp_path / "field.png") as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert colours is not None and len(colours) > 1000
