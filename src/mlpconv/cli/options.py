"""Options that several verbs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mlpconv.errors import UsageError

__all__ = [
    "AnyModel", "Model", "Switch", "check_can_be_written", "check_from_one", "image_size", "is_exported",
    "shipped_names",
]  # fmt: skip

Switch = Annotated[bool, Parameter(negative=())]
"""A flag that is off by default and has no --no- form."""


def shipped_names() -> list[str]:
    """Return the names of the shipped networks, as `models.weights.pretrained_names` does, without importing torch."""
    return sorted(file.stem for file in (Path(__file__).parents[1] / "weights").glob("*.safetensors"))


Model = Annotated[
    str, Parameter(help=f"A model file, a run folder, or the name of a shipped network: {', '.join(shipped_names())}.")
]
"""The network that a verb uses."""
AnyModel = Annotated[
    str,
    Parameter(
        help="A model file, a run folder, a file from `mlpconv export` (.onnx or .xml), or the name of a shipped "
        f"network: {', '.join(shipped_names())}."
    ),
]
"""The network of a verb that also runs exported files."""


def is_exported(model: str) -> bool:
    """Return whether a model is named like an exported file."""
    return Path(model).suffix.lower() in (".onnx", ".xml")


def check_from_one(**options: int) -> None:
    """Raise UsageError for an option that is less than 1."""
    for name, value in options.items():
        if value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected an integer of at least 1.")


def check_can_be_written(**files: Path | None) -> None:
    """Raise UsageError for an option that names a folder, or a file in a folder that does not exist."""
    for name, file in files.items():
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"--{name} is {str(file)!r}; expected a file in a folder that exists.")


def image_size(text: str) -> tuple[int, int, int]:
    """Parse 3x32x32 as (C, H, W); raise UsageError for anything else."""
    numbers = re.fullmatch(r"(\d{1,6})[x×,](\d{1,6})[x×,](\d{1,6})", text.strip())
    if numbers is None or not all(int(number) for number in numbers.groups()):
        raise UsageError(f"--input is {text!r}; expected channels, rows and columns, as in 3x32x32.")
    channels, rows, columns = map(int, numbers.groups())
    return channels, rows, columns
