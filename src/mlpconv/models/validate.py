"""Checks of a network's configuration: also of one that came out of a hostile file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from mlpconv.errors import UsageError, did_you_mean

__all__ = [
    "LIMITS",
    "choice",
    "flag",
    "known_keys",
    "large_enough",
    "multiplier",
    "rate",
    "sequence",
    "sides",
    "too_big",
    "whole",
]

LIMITS: dict[str, int] = {
    "channels": 16384,
    "kernel": 64,
    "blocks": 64,
    "layers": 16,
    "size": 4096,
    "parameters": 1 << 28,
}
"""The most of each thing that a network may have."""


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number between two bounds, both accepted; else UsageError."""
    if type(value) is not int or not low <= value <= high:
        raise UsageError(f"{name} is {_short(value)}; a whole number from {low} to {high} is accepted.")
    return value


def rate(name: str, value: object) -> float:
    """A number from 0 up to, not including, 1; else UsageError."""
    if type(value) not in (int, float) or not 0 <= value < 1:  # type: ignore[operator]
        raise UsageError(f"{name} is {_short(value)}; a number from 0 up to, not including, 1 is accepted.")
    return float(value)  # type: ignore[arg-type]


def multiplier(name: str, value: object) -> float:
    """A number above 0 and up to 64; else UsageError."""
    if type(value) not in (int, float) or not 0 < value <= 64:  # type: ignore[operator]
        raise UsageError(f"{name} is {_short(value)}; a number above 0 and up to 64 is accepted.")
    return float(value)  # type: ignore[arg-type]


def flag(name: str, value: object) -> bool:
    """True or False; else UsageError."""
    if type(value) is not bool:
        raise UsageError(f"{name} is {_short(value)}; True and False are accepted.")
    return value


def choice(name: str, value: object, accepted: Collection[str]) -> str:
    """One of the accepted words; else UsageError with the nearest."""
    if not isinstance(value, str) or value not in accepted:
        raise UsageError(f"{name} is {_short(value)}; {did_you_mean(str(value)[:60], accepted)}")
    return value


def known_keys(what: str, given: object, kind: type[Any]) -> dict[str, Any]:
    """The keys of a mapping, each a field of the dataclass `kind` and none that has no default missing."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{what} is {_short(given)}; a mapping of its settings is accepted.")
    accepted = {field.name: field for field in fields(kind)}
    for key in given:
        if key not in accepted:
            raise UsageError(f"{what} has no setting {_short(key)}; {did_you_mean(str(key)[:60], accepted)}")
    for name, field in accepted.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in given:
            raise UsageError(f"{what} lacks the setting {name!r}.")
    return dict(given)


def too_big(what: str, parameters: int) -> None:
    """Refuse a network with more numbers than any memory should be asked for."""
    if parameters > LIMITS["parameters"]:
        raise UsageError(
            f"{what} would have {parameters:,} parameters; at most {LIMITS['parameters']:,} are accepted. "
            "Use a smaller width or input size."
        )


def large_enough(network: str, size: Sequence[int], least: int) -> None:
    """Refuse a size (rows, columns) of images that is beyond all bounds, or of which the network would leave no cell.

    Raises UsageError with the network's name and its least size.
    """
    for side in size:
        whole("size", side, 1, LIMITS["size"])
    if min(size) < least:
        rows, columns = size
        raise UsageError(
            f"{network} got a size of {rows}x{columns}; it needs images of at least {least}x{least}. "
            f"Enlarge them with size={least} or more, or choose another network."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def sequence(name: str, value: object, most: int) -> tuple[Any, ...]:
    """A list or tuple of at most `most` things, as a tuple; else UsageError."""
    if not isinstance(value, (list, tuple)) or len(value) > most:
        raise UsageError(f"{name} is {_short(value)}; a list of at most {most} values is accepted.")
    return tuple(value)


def sides(size: object) -> tuple[int, int]:
    """Rows and columns from one number or two; else UsageError."""
    pair = (size, size) if isinstance(size, int) else sequence("size", size, 2)
    if len(pair) != 2:
        raise UsageError(f"size is {_short(size)}; a number or two, rows and columns, are accepted.")
    return whole("rows", pair[0], 1, LIMITS["size"]), whole("columns", pair[1], 1, LIMITS["size"])
