"""How image files become pixels of a network's size: the same in training, in evaluation and in prediction."""

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
    """What a network's pixels are of an image file; raises UsageError for an unknown value.

    `fit` brings an image to the network's size: crop keeps the centre of the shorter side's square, pad shows all of it
    on the image's mean colour, stretch gives up its proportions. `bits` of a file with 16 bits a sample are used: that
    many all set are white.
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
        """JSON-able, without what is usual; `from_dict` is its inverse."""
        values = {"fit": self.fit, "bits": self.bits}
        return {name: value for name, value in values.items() if value != getattr(DEFAULT_DECODING, name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecodeOptions:
        """The reading that `to_dict` described."""
        return cls(values.get("fit", "crop"), values.get("bits", 16))


DEFAULT_DECODING = DecodeOptions()
"""The centre, and all sixteen bits."""
