"""The head is scikit-learn's logistic regression, at the penalty that cross-validation prefers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mlpconv.transfer.head import PENALTIES, fit_head, folds_of

CLASSES = 5


def blobs(count: int, features: int = 23, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around one centre a class, on scales from 0.1 to 10, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, features, generator=generator)
    scales = torch.logspace(-1, 1, features)
    return (centres[labels] + noise * torch.randn(count, features, generator=generator)) * scales + 3, labels


@pytest.mark.parametrize("penalty", [1.0, 0.03])
def test_equal_to_scikit_learn(penalty: float) -> None:
    features, labels = blobs(101)
    head = fit_head([features], labels, CLASSES, penalty=penalty)
    scaler = StandardScaler().fit(features)
    other = LogisticRegression(C=1 / (len(labels) * penalty), tol=1e-8, max_iter=5000)
    other.fit(scaler.transform(features), labels)
    expected = other.predict_log_proba(scaler.transform(features))
    np.testing.assert_allclose(head.logits(features).log_softmax(1), expected, atol=2e-3)


def test_equal_to_scikit_learn_with_weighted_images() -> None:
    features, labels = blobs(101)
    weights = 1 + 3 * (labels == 2).float()
    head = fit_head([features], labels, CLASSES, penalty=0.1, weights=weights)
    scaler = StandardScaler().fit(features)
    other = LogisticRegression(C=1 / (float(weights.sum()) * 0.1), tol=1e-8, max_iter=5000)
    other.fit(scaler.transform(features), labels, sample_weight=weights)
    expected = other.predict_log_proba(scaler.transform(features))
    np.testing.assert_allclose(head.logits(features).log_softmax(1), expected, atol=2e-3)


def test_the_penalty_grows_with_the_noise() -> None:
    clean, noisy = (fit_head([blobs(151, noise=noise)[0]], blobs(151)[1], CLASSES) for noise in (0.3, 6.0))
    assert clean.penalty < noisy.penalty
    for head in (clean, noisy):
        assert head.penalty == min(head.log_losses, key=head.log_losses.__getitem__)
        assert set(head.log_losses) <= set(PENALTIES)


def test_two_equal_views_are_one() -> None:
    features, labels = blobs(101)
    one, two = fit_head([features], labels, CLASSES), fit_head([features, features], labels, CLASSES)
    assert two.penalty == one.penalty
    torch.testing.assert_close(two.logits(features), one.logits(features), rtol=1e-2, atol=1e-2)


def test_a_constant_feature_gets_no_weight() -> None:
    features, labels = blobs(101)
    features[:, 7] = 2.5
    assert not fit_head([features], labels, CLASSES, penalty=0.1).weight[:, 7].any()


def test_each_class_is_spread_over_all_folds_and_the_seed_decides() -> None:
    labels = torch.tensor([0] * 23 + [1] * 11 + [2] * 2)
    fold = folds_of(labels, 5, seed=3)
    for label in range(3):
        counts = torch.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert torch.equal(fold, folds_of(labels, 5, seed=3))
    assert not torch.equal(fold, folds_of(labels, 5, seed=4))
