"""Splits, fingerprints and holdout."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpconv.data import Split, holdout, make_dataset
from mlpconv.data.dataset import select
from mlpconv.data.validation import shuffled, stratified
from mlpconv.errors import DataError, MissingSplit, UsageError


def split(labels: list[int], names: bool = False) -> Split:
    """Return a split whose image i has all pixels equal to i."""
    images = np.zeros((len(labels), 1, 3, 3), np.uint8) + np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return Split(images, np.array(labels, np.int64), tuple(f"{i}.png" for i in range(len(labels))) if names else None)


def numbers(part: Split) -> list[int]:
    return [int(i) for i in part.images[:, 0, 0, 0]]


def test_a_missing_split_names_the_available_ones() -> None:
    data = make_dataset("mine", ["a", "b"], {"train": split([0, 1, 0])})
    with pytest.raises(MissingSplit, match=r"mine has no test split; available: train \(3 images\)"):
        data.split("test")
    with pytest.raises(UsageError, match="accepted: train, val, test"):
        data.split("tset")
    assert (data.channels, data.size, data.num_classes) == (1, (3, 3), 2)


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (np.zeros((2, 3, 3), np.uint8), np.zeros(2, np.int64), None),
        (np.zeros((2, 1, 3, 3), np.float32), np.zeros(2, np.int64), None),
        (np.zeros((2, 1, 3, 3), np.uint8), np.zeros(3, np.int64), None),
        (np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.float64), None),
        (np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.int64), ("one.png",)),
    ],
    ids=["three axes", "floats", "a label too many", "float labels", "a name too few"],
)
def test_arrays_of_wrong_dtype_or_shape_are_refused(
    images: np.ndarray, labels: np.ndarray, names: tuple[str, ...] | None
) -> None:
    with pytest.raises(UsageError):
        Split(images, labels, names)


def test_inconsistent_splits_are_refused() -> None:
    other = Split(np.zeros((2, 3, 3, 3), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(UsageError, match="one shape"):
        make_dataset("mine", ["a", "b"], {"train": split([0, 1]), "test": other})
    with pytest.raises(UsageError, match=r"labels must lie in 0\.\.1"):
        make_dataset("mine", ["a", "b"], {"train": split([0, 2])})
    with pytest.raises(UsageError, match="splits must be"):
        make_dataset("mine", ["a", "b"], {"training": split([0, 1])})


def test_the_fingerprint_covers_every_pixel_label_and_split() -> None:
    base = {"train": split([0, 1, 0]), "test": split([1, 0])}
    prints = {make_dataset("mine", "ab", base).fingerprint, make_dataset("other name", "ab", base).fingerprint}
    assert len(prints) == 1
    pixel = base["train"].images.copy()
    pixel[2, 0, 1, 1] ^= 1
    for changed in (
        {**base, "train": Split(pixel, base["train"].labels)},
        {**base, "train": split([0, 1, 1])},
        {"train": base["train"], "val": base["test"]},
        {"train": split([0, 1, 0, 1, 0])},
        {"train": base["train"]},
    ):
        prints.add(make_dataset("mine", "ab", changed).fingerprint)
    assert len(prints) == 6
    assert all(len(print_) == 64 for print_ in prints)


def test_last_holds_out_the_last_images_as_views() -> None:
    whole = split([0] * 11, names=True)
    rest, held = holdout(whole, 0.2)
    assert (numbers(rest), numbers(held)) == (list(range(9)), [9, 10])
    assert held.names == ("9.png", "10.png")
    assert np.shares_memory(rest.images, whole.images)


def test_the_validation_split_of_the_paper() -> None:
    images = np.zeros((50_000, 1, 1, 1), np.uint8)
    rest, held = holdout(Split(images, np.arange(50_000)), 0.2)
    assert (len(rest), int(held.labels[0]), len(held)) == (40_000, 40_000, 10_000)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 99))
def test_stratified_holds_out_the_fraction_of_every_class(labels: list[int], fraction: float, seed: int) -> None:
    held = stratified(np.array(labels), fraction, seed)
    for label, total in Counter(labels).items():
        count = int(held[np.array(labels) == label].sum())
        assert count < total
        assert (count >= 1) == (total >= 2)
        assert abs(count - total * fraction) <= max(1, 1 - total * fraction)


def test_a_stratified_split_depends_only_on_the_seed() -> None:
    whole = split([0, 1] * 20, names=True)
    first, again, other = (holdout(whole, 0.25, seed, how="stratified") for seed in (3, 3, 4))
    assert numbers(first[1]) == numbers(again[1]) != numbers(other[1])
    assert sorted(numbers(first[0]) + numbers(first[1])) == list(range(40))
    assert [f"{i}.png" for i in numbers(first[1])] == list(first[1].names or ())


def test_the_order_of_a_seed_never_changes() -> None:
    # computed once by a straight splitmix64 in Python integers
    def plain(length: int, seed: int) -> list[int]:
        def word(i: int) -> int:
            z = ((i + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95) % 2**64
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            return z ^ (z >> 31)

        return sorted(range(length), key=word)

    for length, seed in ((1, 0), (7, 0), (101, 13), (97, 10**15)):
        assert shuffled(length, seed).tolist() == plain(length, seed)
    firsts = Counter(int(shuffled(5, seed)[0]) for seed in range(1000))
    assert max(firsts.values()) < 260  # each of the five about 200 times


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_that_leaves_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        holdout(split([0, 1, 0]), fraction)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        holdout(split([0]), 0.5)
    with pytest.raises(DataError, match="single image"):
        holdout(split([0, 1, 2]), 0.5, how="stratified")
    with pytest.raises(UsageError, match="'last' or 'stratified'"):
        holdout(split([0, 1]), 0.5, how="first")  # type: ignore[arg-type]


def test_select_keeps_images_labels_and_names_together() -> None:
    part = select(split([0, 1, 2, 3], names=True), np.array([3, 1]))
    assert (numbers(part), part.labels.tolist(), part.names) == ([3, 1], [3, 1], ("3.png", "1.png"))


def test_a_data_set_cannot_be_changed_by_accident() -> None:
    data = make_dataset("mine", ["a", "b"], {"train": split([0, 1])})
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]


def test_reprs_are_one_line() -> None:
    names = tuple(f"photos/{number}.png" for number in range(997))
    split = Split(np.zeros((997, 3, 5, 7), np.uint8), np.zeros(997, np.int64), names)
    data = make_dataset("photos", ("ant", "b\x1bee", "cat", "dog"), {"train": split})
    assert repr(split) == "<Split: 997 images 3x5x7>"
    assert repr(data) == "<Dataset 'photos': images 3x5x7, train 997, 4 classes (ant, b\\x1bee, cat, ...)>"
