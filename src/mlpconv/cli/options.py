"""What several verbs ask for in the same way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mlpconv.errors import UsageError

__all__ = ["Switch", "check_can_be_written", "check_from_one", "image_size"]

Switch = Annotated[bool, Parameter(negative=())]
"""An option that is off until it is named; it has no --no- form."""


def check_from_one(**options: int) -> None:
    """Refuse an option that is below 1: UsageError."""
    for name, value in options.items():
        if value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; a whole number from 1 is accepted.")


def check_can_be_written(**files: Path | None) -> None:
    """Refuse an option that names a folder, or a file in a folder that does not exist: UsageError."""
    for name, file in files.items():
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"--{name} is {str(file)!r}; a file in a folder that exists is accepted.")


def image_size(text: str) -> tuple[int, int, int]:
    """(C, H, W) from 3x32x32; UsageError for anything else."""
    numbers = re.fullmatch(r"(\d{1,6})[x×,](\d{1,6})[x×,](\d{1,6})", text.strip())
    if numbers is None or not all(int(number) for number in numbers.groups()):
        raise UsageError(f"--input is {text!r}; channels, rows and columns are accepted, as in 3x32x32.")
    channels, rows, columns = map(int, numbers.groups())
    return channels, rows, columns
