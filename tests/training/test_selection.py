"""Which epoch is kept."""

from __future__ import annotations

from statistics import stdev

import numpy as np
import pytest

from mlpconv.training.selection import is_kept


def kept(accuracies: list[float], images: int) -> int:
    """Return the position of the network that a run keeps."""
    return max(n for n in range(len(accuracies)) if is_kept(accuracies[: n + 1], images))


@pytest.mark.parametrize(
    ("accuracies", "images", "position"),
    [
        ([0.7], 7, 0),
        ([0.5, 0.9, 0.88], 100, 2),  # one standard error is 0.03
        ([0.5, 0.9, 0.88], 1000, 1),  # 0.0095
        ([0.9, 0.5, 0.4], 101, 0),  # nothing reaches the first again
        ([1.0, 0.99, 1.0, 0.99], 101, 2),  # a perfect score has no error: only another one replaces it
        ([0.0, 0.0], 13, 1),
    ],
)
def test_the_newest_within_one_standard_error_of_the_best_is_kept(accuracies: list[float], images: int, position: int):
    assert kept(accuracies, images) == position


def test_the_margin_is_the_standard_error_of_the_best_accuracy():
    rng = np.random.default_rng(7)
    images, best = 199, 0.8
    measured = stdev(rng.binomial(images, best, 100_000) / images)
    assert kept([best, best - 0.98 * measured], images) == 1
    assert kept([best, best - 1.02 * measured], images) == 0


def test_later_epochs_of_an_improving_run_generalise_better_than_the_luckiest():
    rng = np.random.default_rng(11)
    truth = np.linspace(0.80, 0.83, 12)  # accuracy on all images of the world
    ours, luckiest = [], []
    for _ in range(200):
        seen = list(rng.binomial(200, truth) / 200)
        ours.append(truth[kept(seen, 200)])
        luckiest.append(truth[int(np.argmax(seen))])
    assert np.mean(ours) > np.mean(luckiest) + 0.003
