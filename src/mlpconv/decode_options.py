"""Options for decoding image files to a network's input size, shared by training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlpconv.errors import UsageError, did_you_mean

__all__ = ["DEFAULT_DECODING", "DEPTHS", "FITS", "DecodeOptions"]

FITS = ("crop", "pad", "stretch")
DEPTHS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class DecodeOptions:
    """How image files are decoded; raises UsageError for an unknown value.

    `fit` says how an image is resized: "crop" keeps the central square, "pad" adds bars of the image's mean colour,
    "stretch" changes the aspect ratio. `bits` is how many bits are used in files with 16 bits per sample; 2 ** bits - 1
    is white.
    """

    fit: str = "crop"
    bits: int = 16

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"fit is {str(self.fit)[:40]!r}; {did_you_mean(str(self.fit)[:40], FITS)}")
        if type(self.bits) is not int or self.bits not in DEPTHS:
            accepted = ", ".join(map(str, DEPTHS))
            raise UsageError(f"bits is {str(self.bits)[:40]}; accepted for files of 16 bits: {accepted}.")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form without default values, the inverse of `from_dict`."""
        values = {"fit": self.fit, "bits": self.bits}
        return {name: value for name, value in values.items() if value != getattr(DEFAULT_DECODING, name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecodeOptions:
        """Rebuild the options from `to_dict`; raise UsageError for an unknown value."""
        return cls(values.get("fit", "crop"), values.get("bits", 16))


DEFAULT_DECODING = DecodeOptions()
"""Centre crop, and all sixteen bits."""
