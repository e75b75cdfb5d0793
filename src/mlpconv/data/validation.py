"""Hold out a validation split: by a fixed rule for folders, by position or by a stratified draw for other data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlpconv.data.dataset import Dataset, Split, select
from mlpconv.errors import DataError, UsageError
from mlpconv.text import option

__all__ = ["HoldOutRule", "holdout", "shuffled", "stratified", "with_validation"]

KEY_BYTES = 6
KEYS = 1 << 8 * KEY_BYTES
MAX_HEX_DIGITS = 2 << 20  # a model file's header is no longer


@dataclass(frozen=True)
class HoldOutRule:
    """Which images of a folder are held out, decided by their content; also applies to images added later.

    The hash of the seed and an image's content is mapped to 0..1. An image below `fraction` is held out; all others are
    trained on. `held` and `kept` list the hashes of exceptions, which give every class its share. Adding, removing,
    renaming or relabelling images never moves a training image to the validation split.
    """

    fraction: float
    seed: int
    held: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()

    @classmethod
    def draw(
        cls, contents: Sequence[bytes], pixels: Sequence[bytes], labels: np.ndarray, fraction: float, seed: int
    ) -> HoldOutRule:
        """Hold out `fraction` of every class.

        `contents` and `pixels` are N digests of the files and of their pixels, `labels` is (N,). Images with the same
        pixels stay in one split. A class with at least two distinct images has at least one in each split.
        """
        keys = _keys(contents, seed)
        numbers: dict[bytes, int] = {}
        groups = np.array([numbers.setdefault(digest, len(numbers)) for digest in pixels], np.int64)
        group_keys = np.full(len(numbers), KEYS, np.uint64)
        np.minimum.at(group_keys, groups, keys)
        kept = np.zeros(len(numbers), bool)
        for label in np.unique(labels):
            members = groups[labels == label]
            kept[members[_kept_in_class(group_keys[members], fraction)]] = True
        held = ~kept[groups]
        below = keys < _threshold(fraction)
        return cls(
            float(fraction), int(seed), frozenset(keys[held & ~below].tolist()), frozenset(keys[~held & below].tolist())
        )

    def held_out(self, contents: Sequence[bytes]) -> NDArray[np.bool_]:
        """Return a mask (N,) of the images that are held out, from the digests of their files."""
        keys = _keys(contents, self.seed)
        below: NDArray[np.bool_] = keys < _threshold(self.fraction)
        return (below & ~_isin(keys, self.kept)) | _isin(keys, self.held)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, the inverse of `from_dict`."""
        return {"fraction": self.fraction, "seed": self.seed, "held": _to_hex(self.held), "kept": _to_hex(self.kept)}

    @classmethod
    def from_dict(cls, value: object) -> HoldOutRule | None:
        """Rebuild the rule from `to_dict`; return None for any other value."""
        if not isinstance(value, dict) or set(value) != {"fraction", "seed", "held", "kept"}:
            return None
        fraction, seed, held, kept = (value[name] for name in ("fraction", "seed", "held", "kept"))
        if not isinstance(fraction, float) or not 0 < fraction < 1 or type(seed) is not int:
            return None
        if not all(isinstance(text, str) and len(text) <= MAX_HEX_DIGITS for text in (held, kept)):
            return None
        if not all(re.fullmatch(f"([0-9a-f]{{{2 * KEY_BYTES}}})*", text) for text in (held, kept)):
            return None
        return cls(fraction, seed, _from_hex(held), _from_hex(kept))


def with_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Return the data set with a `val` split: its own, or `fraction` of its training images (none if 0).

    Published sets hold out their last training images, as in the paper (section 4.1); other data hold out the same
    fraction of every class, drawn by the seed. The fingerprint remains that of the full data set.
    Raises DataError if no image can be held out.
    """
    if "val" in dataset.splits or fraction == 0:
        return dataset
    if dataset.membership is not None:  # a folder whose rule held out no image
        raise DataError(
            f"no image of {dataset.name} can be held out, as every class has a single image (copies count once): give "
            f"at least two of some class, or pass {option('val_fraction', 0)} for a run without validation."
        )
    in_order = dataset.published and dataset.name != "digits"
    train, val = holdout(dataset.split("train"), fraction, seed, "last" if in_order else "stratified")
    return replace(dataset, splits={**dataset.splits, "train": train, "val": val})


def holdout(
    split: Split, fraction: float, seed: int = 0, how: Literal["last", "stratified"] = "last"
) -> tuple[Split, Split]:
    """Divide a split into the rest and the fraction held out, each with at least one image.

    "last" holds out the last images in order (the validation split of the paper, section 4.1); "stratified" holds out
    the fraction of every class, drawn by the seed, and keeps a class with a single image in the rest.
    Raises UsageError for a fraction outside 0..1, DataError if there are too few images.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the fraction held out must lie between 0 and 1, not {fraction}.")
    if how not in ("last", "stratified"):
        raise UsageError(f"how must be 'last' or 'stratified', not {how!r}.")
    if len(split) < 2:
        raise DataError(f"cannot divide {len(split)} image into two splits: give at least two images.")
    if how == "last":
        cut = len(split) - min(max(round(len(split) * fraction), 1), len(split) - 1)
        return _slice(split, 0, cut), _slice(split, cut, len(split))
    held = stratified(split.labels, fraction, seed)
    if not held.any():
        raise DataError("every class has a single image, so none can be held out: give at least two of some class.")
    return select(split, np.flatnonzero(~held)), select(split, np.flatnonzero(held))


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask (N,) of `fraction` of every class: at least one image of two or more, and never a full class."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held[members[shuffled(len(members), seed * 1_000_003 + int(label))[:count]]] = True
    return held


def shuffled(length: int, seed: int) -> np.ndarray:
    """Return a permutation of 0..length-1 that depends only on the seed, in every release of NumPy.

    The numbers are sorted by the splitmix64 hash of (seed, number).
    """
    with np.errstate(over="ignore"):
        word = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        word += np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    return np.argsort(word, kind="stable")


def _slice(split: Split, start: int, stop: int) -> Split:
    """Return the images from start to stop as a view."""
    names = None if split.names is None else split.names[start:stop]
    return Split(split.images[start:stop], split.labels[start:stop], names)


def _keys(contents: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """Return the hash (N,) uint64 of the seed and each content digest, below KEYS."""
    start = f"{seed}\n".encode()
    hashes = (hashlib.blake2b(start + content, digest_size=KEY_BYTES).digest() for content in contents)
    return np.array([int.from_bytes(digest, "big") for digest in hashes], np.uint64)


def _threshold(fraction: float) -> np.uint64:
    return np.uint64(fraction * KEYS)


def _kept_in_class(keys: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Return a mask (M,) of the training images of one class: all but the smallest keys, as near as copies allow."""
    values, counts = np.unique(keys, return_counts=True)
    held = counts.cumsum()[:-1]  # never all of them
    if not len(held):
        return np.ones(len(keys), bool)
    limit: np.uint64 = values[np.argmin(np.abs(held - max(round(len(keys) * fraction), 1)))]
    return keys > limit


def _isin(keys: NDArray[np.uint64], members: frozenset[int]) -> NDArray[np.bool_]:
    return np.isin(keys, np.array(sorted(members), np.uint64))


def _to_hex(keys: frozenset[int]) -> str:
    return "".join(f"{key:0{2 * KEY_BYTES}x}" for key in sorted(keys))


def _from_hex(digits: str) -> frozenset[int]:
    width = 2 * KEY_BYTES
    return frozenset(int(digits[start : start + width], 16) for start in range(0, len(digits), width))
