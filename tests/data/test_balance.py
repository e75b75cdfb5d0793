"""Balanced sampling: counts of classes and images in every epoch, as a pure function of seed and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlpconv.data.balance import balance_text, balanced, drawn_labels
from mlpconv.data.sampler import Sampler
from mlpconv.training.health import CollapseWatch

CLASSES = ("cat", "dog", "empty", "wolf")


def labels_of(*counts: int) -> np.ndarray:
    """Labels (N,) with so many images of each class, shuffled."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)


def epoch(labels: np.ndarray, number: int, batch_size: int = 7, seed: int = 0) -> np.ndarray:
    """The images (N,) of one epoch, in order."""
    sampler = balanced(labels, batch_size, seed)
    steps = range(number * sampler.steps_per_epoch, (number + 1) * sampler.steps_per_epoch)
    return torch.cat([sampler.indices(step) for step in steps]).numpy()


@given(st.lists(st.integers(0, 23), min_size=1, max_size=5).filter(any), st.integers(0, 99), st.integers(1, 4))
def test_classes_and_their_images_are_drawn_equally_often(counts: list[int], seed: int, epochs: int) -> None:
    labels = labels_of(*counts)
    drawn = np.concatenate([epoch(labels, number, seed=seed) for number in range(epochs)])
    assert len(drawn) == epochs * len(labels)
    of_images = np.bincount(drawn, minlength=len(labels))
    of_classes = np.bincount(labels[drawn], minlength=len(counts))[np.array(counts) > 0]
    assert np.ptp(of_classes) <= 1
    for label in np.unique(labels):
        assert np.ptp(of_images[labels == label]) <= 1


def test_a_step_depends_on_seed_and_number_alone() -> None:
    labels = labels_of(2, 41, 0, 10)
    one, other = balanced(labels, 9, 3), balanced(labels, 9, 3)
    steps = [37, 0, 5, 6, 5, 12]
    expected = {step: other.indices(step) for step in sorted(steps, reverse=True)}
    assert all(torch.equal(one.indices(step), expected[step]) for step in steps)
    assert len({tuple(epoch(labels, number, seed=seed)) for number in (0, 1) for seed in (3, 4)}) == 4
    one.indices(0).zero_()
    assert torch.equal(one.indices(0), expected[0])


def test_a_large_class_is_seen_in_turn_over_the_epochs() -> None:
    labels = labels_of(4, 40)
    drawn = [epoch(labels, number) for number in (0, 1)]
    assert [int((labels[images] == 1).sum()) for images in drawn] == [22, 22]
    assert set(np.concatenate(drawn)) == set(range(44))


def test_samplers_of_other_labels_do_not_share_what_is_remembered() -> None:
    for labels in (labels_of(5, 1), labels_of(1, 5)):
        assert list(np.bincount(labels[epoch(labels, 0)])) == [3, 3]


def test_chance_level_is_that_of_the_drawn_classes() -> None:
    labels = labels_of(3, 60)
    sampler = balanced(labels, 8, 0)
    watch = CollapseWatch(drawn_labels(sampler, torch.from_numpy(labels)), 8)
    assert watch.chance_loss == pytest.approx(np.log(2), rel=1e-3)
    assert torch.equal(drawn_labels(Sampler(63, 8, 0), torch.from_numpy(labels)), torch.from_numpy(labels))


def test_the_log_names_the_smallest_and_the_largest_class() -> None:
    assert balance_text(labels_of(480, 1200, 0, 12), CLASSES) == (
        "classes are balanced: the smallest and the largest have wolf 12 and dog 1,200 training images, and count the "
        "same"
    )
    assert balance_text(labels_of(7, 7), CLASSES) == "classes are balanced: all have 7 training images"
    assert balance_text(labels_of(1, 1), CLASSES) == "classes are balanced: all have 1 training image"
