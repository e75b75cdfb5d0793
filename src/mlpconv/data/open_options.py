"""The options of opening data, shared by folders, shards and published data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from mlpconv.data.validation import HoldOutRule
from mlpconv.errors import UsageError

__all__ = ["OpenOptions"]

MAX_SIZE = 4096


@dataclass(frozen=True)
class OpenOptions:
    """The keywords of `open_data`; None is inferred from the files. Raises UsageError for an invalid value."""

    size: int | None = None
    channels: int | None = None
    classes: Sequence[str] | None = None
    seed: int = 0
    val_fraction: float = 0.2
    max_bad: float = 0.1
    fit: str | None = None
    bits: int | None = None
    membership: HoldOutRule | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not (_is(Integral, self.size) and 1 <= self.size <= MAX_SIZE):
            raise UsageError(
                f"the size must be one side, a whole number between 1 and {MAX_SIZE} pixels, not {self.size!r:.40}."
            )
        if self.channels not in (None, 1, 3):
            raise UsageError(f"channels must be 1 (grey) or 3 (colour), not {self.channels}.")
        if not (_is(Real, self.val_fraction) and 0 <= self.val_fraction < 1):
            raise UsageError(
                f"the fraction held out for validation must be at least 0 and below 1, not {self.val_fraction}."
            )
        if not (_is(Real, self.max_bad) and 0 <= self.max_bad <= 1):
            raise UsageError(
                f"the fraction of files that may be unreadable must lie between 0 and 1, not {self.max_bad}."
            )


def _is(kind: type, value: object) -> bool:
    """Return whether a value from Python is of a kind of number, whatever the annotation says."""
    return isinstance(value, kind)
