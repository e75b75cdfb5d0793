"""Validate the configuration of a network, including one from an untrusted file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar, Self

from mlpconv.errors import UsageError, did_you_mean

__all__ = [
    "LIMITS",
    "JSONConfig",
    "check_count",
    "check_size",
    "choice",
    "flag",
    "integer",
    "known_keys",
    "multiplier",
    "rate",
    "sequence",
    "sides",
]

LIMITS: dict[str, int] = {
    "channels": 16384,
    "kernel": 64,
    "blocks": 64,
    "layers": 16,
    "size": 4096,
    "parameters": 1 << 28,
}
"""Upper limits of a configuration."""


def integer(name: str, value: object, low: int, high: int) -> int:
    """Return an integer from `low` to `high`, inclusive; raise UsageError for anything else."""
    if type(value) is not int or not low <= value <= high:
        raise UsageError(f"{name} is {_short(value)}; a whole number from {low} to {high} is accepted.")
    return value


def rate(name: str, value: object) -> float:
    """Return a number of at least 0 and below 1 as a float; raise UsageError for anything else."""
    if type(value) not in (int, float) or not 0 <= value < 1:  # type: ignore[operator]
        raise UsageError(f"{name} is {_short(value)}; a number of at least 0 and below 1 is accepted.")
    return float(value)  # type: ignore[arg-type]


def multiplier(name: str, value: object) -> float:
    """Return a number above 0 and up to 64 as a float; raise UsageError for anything else."""
    if type(value) not in (int, float) or not 0 < value <= 64:  # type: ignore[operator]
        raise UsageError(f"{name} is {_short(value)}; a number above 0 and up to 64 is accepted.")
    return float(value)  # type: ignore[arg-type]


def flag(name: str, value: object) -> bool:
    """Return True or False; raise UsageError for anything else."""
    if type(value) is not bool:
        raise UsageError(f"{name} is {_short(value)}; True and False are accepted.")
    return value


def choice(name: str, value: object, accepted: Collection[str]) -> str:
    """Return one of the accepted words; raise UsageError, suggesting the nearest, for anything else."""
    if not isinstance(value, str) or value not in accepted:
        raise UsageError(f"{name} is {_short(value)}; {did_you_mean(str(value)[:60], accepted)}")
    return value


def known_keys(what: str, settings: object, kind: type[Any]) -> dict[str, Any]:
    """Return settings for the fields of dataclass `kind`; raise UsageError for unknown and missing required keys."""
    if not isinstance(settings, Mapping):
        raise UsageError(f"{what} is {_short(settings)}; a mapping of its settings is accepted.")
    accepted = {field.name: field for field in fields(kind)}
    for key in settings:
        if key not in accepted:
            raise UsageError(f"{what} has no setting {_short(key)}; {did_you_mean(str(key)[:60], accepted)}")
    for name, field in accepted.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in settings:
            raise UsageError(f"{what} lacks the required setting {name!r}.")
    return dict(settings)


def check_count(what: str, parameters: int) -> None:
    """Raise UsageError for a network with more parameters than the limit."""
    if parameters > LIMITS["parameters"]:
        raise UsageError(
            f"{what} would have {parameters:,} parameters; at most {LIMITS['parameters']:,} are accepted. "
            "Use a smaller width or input size."
        )


def check_size(network: str, size: Sequence[int], min_size: int) -> None:
    """Raise UsageError for an image size (rows, columns) that is out of bounds or too small for the network."""
    for side in size:
        integer("size", side, 1, LIMITS["size"])
    if min(size) < min_size:
        rows, columns = size
        raise UsageError(
            f"{network} got a size of {rows}x{columns}; images of at least {min_size}x{min_size} are accepted. "
            f"Use size={min_size} or more, or choose another network."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def sequence(name: str, value: object, limit: int) -> tuple[Any, ...]:
    """Return a list or tuple of at most `limit` values as a tuple; raise UsageError for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) > limit:
        raise UsageError(f"{name} is {_short(value)}; a list of at most {limit} values is accepted.")
    return tuple(value)


def sides(size: object) -> tuple[int, int]:
    """Return rows and columns from one number or two; raise UsageError for anything else."""
    pair = (size, size) if isinstance(size, int) else sequence("size", size, 2)
    if len(pair) != 2:
        raise UsageError(f"size is {_short(size)}; one number, or two for rows and columns, is accepted.")
    return integer("rows", pair[0], 1, LIMITS["size"]), integer("columns", pair[1], 1, LIMITS["size"])


class JSONConfig:
    """Conversion to and from JSON, for a frozen dataclass with a `size` and a class variable `family`."""

    family: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable data; `from_dict` is the inverse."""
        data: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return data | {"size": list(data["size"]), "family": self.family}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the configuration that `to_dict` wrote; raise UsageError for anything else."""
        values = known_keys("The network", {key: data[key] for key in data if key != "family"}, cls)
        return cls(**(values | ({"size": sides(values["size"])} if "size" in values else {})))
