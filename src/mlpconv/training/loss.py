"""The loss of a training step: cross-entropy with the labels and, in distillation, with the soft targets of a teacher.

Distillation is that of Hinton, Vinyals and Dean (2015): teacher and network are compared at a temperature T, which
softens both; the factor T^2 keeps the gradients of the two terms on one scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from mlpconv.training.recipe import Recipe

__all__ = ["Losses", "SoftTargets", "losses"]


class SoftTargets(NamedTuple):
    """The probabilities that a teacher gives the training images, and what the model file records of the teacher."""

    probabilities: Tensor
    """(V, N, K) at the recipe's temperature, of each image as it is (view 0) and flipped horizontally (view 1)."""
    facts: dict[str, Any]


class Losses(NamedTuple):
    """The losses of a batch, both scalars.

    `labels` is the cross-entropy with the labels, which is reported, with and without a teacher; `total` is minimised.
    """

    labels: Tensor
    total: Tensor


def losses(
    logits: Tensor, auxiliary: Iterable[tuple[float, Tensor]], targets: Tensor, soft: Tensor | None, recipe: Recipe
) -> Losses:
    """Return the losses of logits (N, K), and of the weighted logits of `auxiliary` heads.

    `targets` are labels (N,) or probabilities (N, K); `soft` (N, K) are those of a teacher at the recipe's temperature.
    """
    labels = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
    total = with_teacher(labels, logits.float(), soft, recipe)
    for weight, aux_logits in auxiliary:
        aux_labels = F.cross_entropy(aux_logits.float(), targets, label_smoothing=recipe.label_smoothing)
        total = total + weight * with_teacher(aux_labels, aux_logits.float(), soft, recipe)
    return Losses(labels, total)


def with_teacher(labels: Tensor, logits: Tensor, soft: Tensor | None, recipe: Recipe) -> Tensor:
    """Return (1 - w) * labels + w * T^2 * KL(soft || softmax(logits / T)); `labels` alone without a teacher."""
    if soft is None:
        return labels
    weight, temperature = recipe.teacher_weight, recipe.teacher_temperature
    divergence = F.kl_div(F.log_softmax(logits / temperature, 1), soft, reduction="batchmean")
    return (1 - weight) * labels + weight * temperature**2 * divergence
