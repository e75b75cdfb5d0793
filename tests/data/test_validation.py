"""The content of images decides which are held out: the same fraction per class, copies together."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpconv.data.validation import HoldOutRule

IMAGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), min_size=1, max_size=80)  # (content, class)


def draw(images: list[tuple[int, int]], fraction: float, seed: int) -> tuple[HoldOutRule, list[bytes]]:
    contents = [f"{content}".encode() for content, _ in images]
    labels = np.array([label for _, label in images])
    return HoldOutRule.draw(contents, contents, labels, fraction, seed), contents


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 9))
def test_every_class_is_held_out_in_proportion(labels: list[int], fraction: float, seed: int) -> None:
    membership, contents = draw(list(enumerate(labels)), fraction, seed)
    held = membership.held_out(contents)
    for label, total in Counter(labels).items():
        count = int(held[np.array(labels) == label].sum())
        assert count == min(max(round(total * fraction), 1), total - 1)


@given(IMAGES, IMAGES, st.floats(0.01, 0.99), st.integers(0, 9))
def test_training_images_are_never_held_out_later(
    before: list[tuple[int, int]], after: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    """The second list shares contents with the first, in other classes and positions."""
    membership, contents = draw(before, fraction, seed)
    first = dict(zip(contents, membership.held_out(contents).tolist(), strict=True))
    stored = HoldOutRule.from_dict(json.loads(json.dumps(membership.to_dict())))
    assert stored == membership
    later = [f"{content}".encode() for content, _ in after]
    for content, held in zip(later, membership.held_out(later).tolist(), strict=True):
        assert held == first.get(content, held)


@given(IMAGES, st.floats(0.01, 0.99))
def test_copies_stay_together_and_every_class_keeps_an_image(images: list[tuple[int, int]], fraction: float) -> None:
    membership, contents = draw(images, fraction, 3)
    held = membership.held_out(contents)
    assert all(len({bool(h) for h, c in zip(held, contents, strict=True) if c == one}) == 1 for one in contents)
    for label in {label for _, label in images}:
        assert not held[np.array([other == label for _, other in images])].all()


def test_files_with_identical_pixels_stay_in_one_split() -> None:
    """Ten images are each stored in five files."""
    contents = [f"file {i}".encode() for i in range(50)]
    pixels = [f"picture {i % 10}".encode() for i in range(50)]
    held = HoldOutRule.draw(contents, pixels, np.zeros(50, int), 0.2, 0).held_out(contents)
    assert held.sum() == 10
    assert {pixels[i] for i in np.flatnonzero(held)} == {pixels[i] for i in np.flatnonzero(held)[:2]}


def test_a_rule_stores_few_exceptions() -> None:
    membership, _ = draw([(i, i % 10) for i in range(50_000)], 0.2, 1)
    assert len(membership.held) + len(membership.kept) < 1000
    assert len(json.dumps(membership.to_dict())) < 15_000


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"fraction": 0.2, "seed": 0, "held": "", "kept": "", "more": 1},
        {"fraction": 2.0, "seed": 0, "held": "", "kept": ""},
        {"fraction": float("nan"), "seed": 0, "held": "", "kept": ""},
        {"fraction": 0.2, "seed": True, "held": "", "kept": ""},
        {"fraction": 0.2, "seed": 0, "held": "12345678901", "kept": ""},
        {"fraction": 0.2, "seed": 0, "held": "", "kept": "x" * 12},
        {"fraction": 0.2, "seed": 0, "held": [], "kept": ""},
    ],
)
def test_an_invalid_rule_is_none(value: Any) -> None:
    assert HoldOutRule.from_dict(value) is None
