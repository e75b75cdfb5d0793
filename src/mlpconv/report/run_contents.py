"""Read the files of a run folder for the report; every file may be missing or damaged."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpconv import inference
from mlpconv.errors import MlpconvError
from mlpconv.files import MODEL_FILE
from mlpconv.inference import Classifier

__all__ = ["FIGURES", "RunParts", "number", "read_run"]

FIGURES = ("curves", "confusion", "mistakes", "maps", "filters")
MAX_BYTES = 32 << 20
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class RunParts:
    """The parts of a run; a missing part is empty."""

    path: Path
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    environment: Mapping[str, Any]
    choice: Mapping[str, Any]
    teacher: Mapping[str, Any]
    history: tuple[Mapping[str, str], ...]
    figures: Mapping[str, bytes]
    classifier: Classifier | None

    @property
    def model_name(self) -> str | None:
        """Return the network's name from the model file, else from the recipe."""
        if self.classifier is not None:
            return self.classifier.model.config.name
        name = self.recipe.get("model")
        return name if isinstance(name, str) and name != "auto" else None

    @property
    def title(self) -> str:
        """Return a title: network and data set."""
        data = self.data.get("name")
        if self.model_name and data:
            return f"{self.model_name} on {data}"
        return str(self.model_name or data or self.path.resolve().name)


def read_run(folder: Path, classifier: Classifier | None = None) -> RunParts:
    """Read the valid parts of a run folder; `classifier` is that of its model file, or None."""
    figures = {name: _bytes(folder / "figures" / f"{name}.png") for name in FIGURES}
    return RunParts(
        folder,
        _mapping(folder / "recipe.json"),
        _mapping(folder / "data.json"),
        _mapping(folder / "evaluation.json"),
        _mapping(folder / "environment.json"),
        _mapping(folder / "choice.json"),
        _mapping(folder / "teacher.json"),
        _history(folder / "metrics.csv"),
        {name: content for name, content in figures.items() if content.startswith(PNG)},
        _classifier(folder / MODEL_FILE, classifier),
    )


def number(mapping: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of a mapping, parsed if it is text, or None."""
    value = mapping.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def _bytes(path: Path) -> bytes:
    """Return the content of a regular file of bounded size, or no bytes."""
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return path.read_bytes()
    except OSError:
        return b""
    return b""


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(_bytes(path))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _history(path: Path) -> tuple[Mapping[str, str], ...]:
    try:
        return tuple(csv.DictReader(io.StringIO(_bytes(path).decode("utf-8", "replace"))))
    except csv.Error:
        return ()


def _classifier(path: Path, known: Classifier | None) -> Classifier | None:
    """Return the classifier of a model file, `known` if the caller has it, or None without a valid file."""
    if not path.is_file() or known is not None:
        return known if path.is_file() else None
    try:
        return inference.load(path)
    except (MlpconvError, OSError):
        return None
