"""Which images are held out for validation: told by what is in them, so that no other image moves them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HoldOutRule"]

KEY_BYTES = 6
KEYS = 1 << 8 * KEY_BYTES
MOST_DIGITS = 2 << 20  # a model file's header is no longer


@dataclass(frozen=True)
class HoldOutRule:
    """The images that a training run held out, as a rule that also decides about images that it has not seen.

    The hash of an image's content and the seed is a number from 0 to 1. Below `fraction` the image is held out, and
    else trained on; `held` and `kept` hold the hashes of the exceptions, which give every class its share. No image
    that was trained on is ever held out by the rule, whatever is added, removed, renamed or moved to another class.
    """

    fraction: float
    seed: int
    held: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()

    @classmethod
    def draw(
        cls, contents: Sequence[bytes], pixels: Sequence[bytes], labels: np.ndarray, fraction: float, seed: int
    ) -> HoldOutRule:
        """Hold out the fraction of every class: of N images the digests of content and pixels, and labels (N,).

        Images with the same pixels stay together. Of a class at least one image is held out and one is kept, where it
        has two that differ.
        """
        keys = _keys(contents, seed)
        numbers: dict[bytes, int] = {}
        groups = np.array([numbers.setdefault(digest, len(numbers)) for digest in pixels], np.int64)
        first = np.full(len(numbers), KEYS, np.uint64)
        np.minimum.at(first, groups, keys)
        kept = np.zeros(len(numbers), bool)
        for label in np.unique(labels):
            members = groups[labels == label]
            kept[members[_kept(first[members], fraction)]] = True
        held = ~kept[groups]
        below = keys < _threshold(fraction)
        return cls(
            float(fraction), int(seed), frozenset(keys[held & ~below].tolist()), frozenset(keys[~held & below].tolist())
        )

    def held_out(self, contents: Sequence[bytes]) -> NDArray[np.bool_]:
        """Mark (N,) bool the images that are held out, by the digests of their content."""
        keys = _keys(contents, self.seed)
        below: NDArray[np.bool_] = keys < _threshold(self.fraction)
        return (below & ~_among(keys, self.kept)) | _among(keys, self.held)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is its inverse."""
        return {"fraction": self.fraction, "seed": self.seed, "held": _digits(self.held), "kept": _digits(self.kept)}

    @classmethod
    def from_dict(cls, value: object) -> HoldOutRule | None:
        """The membership that `to_dict` described; None for anything else."""
        if not isinstance(value, dict) or set(value) != {"fraction", "seed", "held", "kept"}:
            return None
        fraction, seed, held, kept = (value[name] for name in ("fraction", "seed", "held", "kept"))
        if not isinstance(fraction, float) or not 0 < fraction < 1 or type(seed) is not int:
            return None
        if not all(isinstance(text, str) and len(text) <= MOST_DIGITS for text in (held, kept)):
            return None
        if not all(re.fullmatch(f"([0-9a-f]{{{2 * KEY_BYTES}}})*", text) for text in (held, kept)):
            return None
        return cls(fraction, seed, _numbers(held), _numbers(kept))


def _keys(contents: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """The hash (N,) uint64 of the seed and each content digest, below KEYS."""
    start = f"{seed}\n".encode()
    hashes = (hashlib.blake2b(start + content, digest_size=KEY_BYTES).digest() for content in contents)
    return np.array([int.from_bytes(digest, "big") for digest in hashes], np.uint64)


def _threshold(fraction: float) -> np.uint64:
    return np.uint64(fraction * KEYS)


def _kept(keys: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Mark (M,) bool the images of one class that are trained on: all but the least keys, as near as copies allow."""
    values, counts = np.unique(keys, return_counts=True)
    held = counts.cumsum()[:-1]  # never all of them
    if not len(held):
        return np.ones(len(keys), bool)
    limit: np.uint64 = values[np.argmin(np.abs(held - max(round(len(keys) * fraction), 1)))]
    return keys > limit


def _among(keys: NDArray[np.uint64], some: frozenset[int]) -> NDArray[np.bool_]:
    return np.isin(keys, np.array(sorted(some), np.uint64))


def _digits(keys: frozenset[int]) -> str:
    return "".join(f"{key:0{2 * KEY_BYTES}x}" for key in sorted(keys))


def _numbers(digits: str) -> frozenset[int]:
    width = 2 * KEY_BYTES
    return frozenset(int(digits[start : start + width], 16) for start in range(0, len(digits), width))
