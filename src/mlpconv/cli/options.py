"""What several verbs ask for in the same way."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mlpconv.errors import UsageError

__all__ = ["Switch", "check_from_one"]

Switch = Annotated[bool, Parameter(negative=())]
"""An option that is off until it is named; it has no --no- form."""


def check_from_one(**options: int) -> None:
    """Refuse an option that is below 1: UsageError."""
    for name, value in options.items():
        if value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; a whole number from 1 is accepted.")
