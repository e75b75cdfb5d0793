"""Fit a linear classifier on fixed features: multinomial logistic regression, its penalty chosen by cross-validation.

The features are standardised for the fit; the result is a plain weight and bias for the features as they are, so that a
1x1 convolution with these numbers gives the same logits at each place of the feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import unwrap
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PENALTIES", "Head", "fit_head", "folds_of"]

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Candidates for the L2 penalty on the weights of standardised features; scikit-learn's C is 1 / (N * penalty)."""
FOLDS = 5
MOST_FOLDED = 20_000
"""Images above which one fold alone is held out, since its error is known well enough."""
ITERATIONS = 200
TOLERANCE, ROUGH_TOLERANCE = 1e-5, 3e-4
"""Of the gradient: for the result, and for choosing the penalty, which is the same in half the time."""
FLOOR = 1e-6
"""A feature of less deviation is constant, and gets no weight."""


@dataclass(frozen=True)
class Head:
    """A linear classifier of D features."""

    weight: Tensor
    """(K, D)"""
    bias: Tensor
    """(K,)"""
    penalty: float
    log_losses: dict[float, float]
    """Mean cross-validated log loss (nats) for each penalty tried; empty where the penalty was chosen by the caller."""

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return features @ self.weight.T + self.bias


def fit_head(
    views: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    *,
    penalty: float | None = None,
    weights: Tensor | None = None,
    fixed: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Head:
    """Fit a classifier of `num_classes` on the features of images, each seen in one or more views.

    `views` are (N, D) each, row i of every one of image i (flipped, say); `labels` are (N,); `weights` (N,) weigh the
    images, all the same if None. Without a `penalty`, the one of the least cross-validated log loss is taken; all views
    of an image are in the same fold. `fixed` are the weight (F, D) and bias (F,) of the first F classes, which stay.
    """
    if fixed is None:
        fixed = torch.empty(0, views[0].shape[1]), torch.empty(0)
    new = num_classes - len(fixed[1])
    stacked = torch.cat([view.float() for view in views])
    mean, deviation = stacked.mean(0), stacked.std(0, correction=0)
    scale = torch.where(deviation > FLOOR, 1 / deviation.clamp_min(FLOOR), torch.zeros_like(deviation))
    z, y = (stacked - mean) * scale, labels.repeat(len(views))
    w = torch.ones(len(y)) if weights is None else weights.float().repeat(len(views))
    rows = _Rows(z, stacked @ fixed[0].T + fixed[1], y, w)
    log_losses: dict[float, float] = {}
    if penalty is None:
        log_losses = _cross_validated(rows, new, folds_of(labels, FOLDS, seed).repeat(len(views)))
        penalty = min(log_losses, key=lambda key: log_losses[key])
    weight, bias = _solve(rows, penalty, _zeros(z, new))
    weight = weight * scale
    return Head(torch.cat([fixed[0], weight]), torch.cat([fixed[1], bias - weight @ mean]), penalty, log_losses)


class _Rows(NamedTuple):
    """Images to fit on: standardised features (N, D), logits of fixed classes (N, F), labels (N,), weights (N,)."""

    z: Tensor
    fixed: Tensor
    y: Tensor
    w: Tensor

    def where(self, mask: Tensor) -> _Rows:
        return _Rows(*(part[mask] for part in self))

    def losses(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the log loss (N,) of each image with these weights of the other classes."""
        logits = torch.cat([self.fixed, self.z @ weight.T + bias], 1)
        return F.cross_entropy(logits, self.y, reduction="none")


def folds_of(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold (N,) of each image: drawn by the seed, each class spread evenly over all folds."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.empty_like(labels)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        start = int(torch.randint(folds, (1,), generator=generator))  # small classes must not all lack the last fold
        fold[members[order]] = (torch.arange(len(members)) + start) % folds
    return fold


def _cross_validated(rows: _Rows, new: int, fold: Tensor) -> dict[float, float]:
    """Return the log loss of held-out images for each penalty, from the largest until it rises twice."""
    tested = range(FOLDS) if len(rows.y) <= MOST_FOLDED else range(1)
    start = {held: _zeros(rows.z, new) for held in tested}
    log_losses: dict[float, float] = {}
    for penalty in PENALTIES:
        total = count = 0.0
        for held in tested:
            outside = rows.where(fold == held)
            start[held] = _solve(rows.where(fold != held), penalty, start[held], ROUGH_TOLERANCE)
            total += float((outside.losses(*start[held]) * outside.w).sum())
            count += float(outside.w.sum())
        log_losses[penalty] = total / count
        recent = list(log_losses.values())[-3:]
        if len(recent) == 3 and recent[0] < recent[1] < recent[2]:
            break
    return log_losses


def _zeros(z: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(num_classes, z.shape[1]), torch.zeros(num_classes)


def _solve(
    rows: _Rows, penalty: float, start: tuple[Tensor, Tensor], tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor]:
    """Minimise the weighted mean log loss + penalty / 2 * |weight|^2 from a start, by L-BFGS."""
    weight, bias = (part.clone().requires_grad_() for part in start)
    w = rows.w / rows.w.sum()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        for parameter in (weight, bias):
            parameter.grad = None
        value = (rows.losses(weight, bias) * w).sum() + penalty / 2 * weight.square().sum()
        value.backward()
        return value.detach()

    step: Any = unwrap(torch.optim.LBFGS.step)  # the wrapper around it imports PyTorch's compiler
    with torch.no_grad():
        step(solver, loss)
    return weight.detach(), bias.detach()
