"""How good a classifier is on labelled images: error, calibration, confusion, each class. Speed is measured elsewhere.

Metrics are named and defined as in scikit-learn; intervals hold with 95 % probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mlpconv.data import Split
from mlpconv.errors import DataError, ModelFileError, UsageError
from mlpconv.inference import Classifier
from mlpconv.text import composed

__all__ = ["Confusion", "Evaluation", "Mistake", "PerClass", "align_labels", "evaluate", "wilson", "worst_mistakes"]

BINS = 15
TOP = 5
Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
FloatArray = NDArray[np.float64]


class PerClass(NamedTuple):
    """A figure for each of the K classes; where nothing was to be divided by, it is 0, as in scikit-learn."""

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: NDArray[np.int64]
    """Images of the class; 0 where it is absent from the split."""


@dataclass(frozen=True)
class Confusion:
    """Two classes that were confused, one way."""

    true: str
    predicted: str
    count: int
    share: float
    """Of the images of the true class."""


@dataclass(frozen=True)
class Mistake:
    """One wrongly classified image."""

    index: int
    true: str
    predicted: str
    confidence: float
    source: str | None


@dataclass(frozen=True)
class Evaluation:
    """What a classifier did on N labelled images of K classes."""

    n: int
    error: float
    """Share of images whose most probable class is wrong."""
    error_interval: tuple[float, float]
    """Wilson's 95 % interval of the error."""
    log_loss: float
    """Mean negative logarithm of the true class's probability, in nats."""
    top5_error: float | None
    """Share of images whose class is not among the five most probable; None for five classes or fewer."""
    calibration_error: float
    """Expected calibration error: how far confidence is from accuracy, mean over 15 bins of equal width."""
    confusion: NDArray[np.int64]
    """(K, K) counts; rows are the true classes, columns the predicted ones."""
    per_class: PerClass
    probabilities: NDArray[np.float32]
    """(N, K)"""
    predicted: NDArray[np.int64]
    """(N,); the first in the model's order among equals."""
    labels: NDArray[np.int64]
    """(N,), the true classes."""
    classes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """1 - error."""
        return 1 - self.error

    def __repr__(self) -> str:
        low, high = self.error_interval
        interval = f"(95 % interval {low:.2%} to {high:.2%})"
        return f"<Evaluation of {self.n:,} images, {len(self.classes)} classes: error {self.error:.2%} {interval}>"

    def confused(self, count: int = 10) -> list[Confusion]:
        """The pairs of classes most often confused, the most frequent first."""
        wrong, support = self.confusion.copy(), self.per_class.support
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        rows, columns = np.unravel_index(order, wrong.shape)
        return [
            Confusion(self.classes[t], self.classes[p], int(wrong[t, p]), float(wrong[t, p] / support[t]))
            for t, p in zip(rows, columns, strict=True)
            if wrong[t, p]
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the arrays of N and K x K numbers."""
        columns = {name: values.tolist() for name, values in self.per_class._asdict().items()}
        return {
            "n": self.n,
            "error": self.error,
            "error_interval": list(self.error_interval),
            "accuracy": self.accuracy,
            "log_loss": self.log_loss,
            "top5_error": self.top5_error,
            "calibration_error": self.calibration_error,
            "per_class": [
                {"class": name} | {column: values[k] for column, values in columns.items()}
                for k, name in enumerate(self.classes)
            ],
            "most_confused": [asdict(pair) for pair in self.confused()],
        }


def evaluate(
    classifier: Classifier,
    split: Split,
    *,
    batch_size: int = 128,
    tta_flip: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Judge a classifier on a split whose labels count in the order of its classes (see `align_labels`).

    `tta_flip` averages the logits of each image and its mirror image; `progress` is told how many images are done.
    Raises DataError for an empty split, labels beyond the classes, or images of another size than the classifier's,
    ModelFileError for a network that gives NaN.
    """
    _check(classifier, split, batch_size)
    parts = []
    for start in range(0, len(split), batch_size):
        pixels = torch.from_numpy(np.array(split.images[start : start + batch_size]))
        parts.append(classifier.logits(pixels, tta_flip=tta_flip).double().cpu())
        if progress is not None:
            progress(min(start + batch_size, len(split)))
    logits = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise ModelFileError(
            "The network gives NaN or infinity: its weights are too large to compute with, train anew."
        )
    return _judge(logits, np.asarray(split.labels, dtype=np.int64), classifier.classes)


def _check(classifier: Classifier, split: Split, batch_size: int) -> None:
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}; a whole number from 1 is accepted.")
    if not len(split):
        raise DataError("The split has no images: nothing can be judged on it.")
    if split.images.shape[1:] != classifier.input_size:
        given, taken = ("x".join(map(str, size)) for size in (split.images.shape[1:], classifier.input_size))
        raise DataError(
            f"The images are {given} (channels, rows, columns), the classifier takes {taken}: judge it on images of "
            "that kind; open_data(folder, size=..., channels=...) makes them so."
        )
    count = len(classifier.classes)
    if split.labels.min() < 0 or split.labels.max() >= count:
        raise DataError(f"Labels from {split.labels.min()} to {split.labels.max()} were given for {count} classes.")


def _judge(logits: FloatArray, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Evaluation:
    """Every figure from logits (N, K) and labels (N,)."""
    n, count = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    predicted = logits.argmax(axis=1)
    wrong = predicted != labels
    confusion = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    return Evaluation(
        n=n,
        error=float(wrong.mean()),
        error_interval=wilson(int(wrong.sum()), n),
        log_loss=float(-log_probabilities[np.arange(n), labels].mean()),
        top5_error=float((_rank(logits, labels) >= TOP).mean()) if count > TOP else None,
        calibration_error=_calibration_error(probabilities.max(axis=1), ~wrong),
        confusion=confusion,
        per_class=_per_class(confusion),
        probabilities=probabilities.astype(np.float32),
        predicted=predicted,
        labels=labels,
        classes=classes,
    )


def wilson(count: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share `count` of `n`: where the true share lies with 95 % probability (1927)."""
    share = count / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half) if count else 0.0), (min(1.0, centre + half) if count < n else 1.0)


def _rank(logits: FloatArray, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,): how many classes go before the true one; among equals the first in order, so that a tie earns nothing."""
    true = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    ranks: NDArray[np.int64] = ((logits > true) | ((logits == true) & before)).sum(axis=1)
    return ranks


def _calibration_error(confidence: FloatArray, right: NDArray[np.bool_]) -> float:
    """Expected calibration error over bins (a, b] of equal width (Guo et al., 2017)."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _per_class(confusion: NDArray[np.int64]) -> PerClass:
    right, support, chosen = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

    def share(part: NDArray[Any], whole: NDArray[Any]) -> FloatArray:
        made: FloatArray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
        return made

    return PerClass(share(right, chosen), share(right, support), share(2 * right, support + chosen), support)


def worst_mistakes(evaluation: Evaluation, split: Split, k: int = 25) -> list[Mistake]:
    """The `k` mistakes of which the classifier was most confident, the most confident first."""
    confidence = evaluation.probabilities[np.arange(evaluation.n), evaluation.predicted]
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:k]
    return [
        Mistake(
            index=int(index),
            true=evaluation.classes[evaluation.labels[index]],
            predicted=evaluation.classes[evaluation.predicted[index]],
            confidence=float(confidence[index]),
            source=split.names[index] if split.names is not None else None,
        )
        for index in order
    ]


def align_labels(split: Split, classes: Sequence[str], classifier: Classifier) -> Split:
    """The split with labels in the order of the classifier's classes, found by name.

    Classes that the data lack are no fault. Raises DataError for images of a class that the classifier does not know.
    """
    place = {composed(name): k for k, name in enumerate(classifier.classes)}
    classes = [composed(name) for name in classes]
    used = np.unique(split.labels)
    unknown = [classes[k] for k in used if classes[k] not in place]
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        known = ", ".join(repr(name) for name in classifier.classes[:20])
        raise DataError(
            f"The model does not know the {'class' if len(unknown) == 1 else 'classes'} {shown}; it knows {known}"
            f"{', ...' if len(classifier.classes) > 20 else ''}: rename the folders, or leave them out."
        )
    table = np.array([place.get(name, -1) for name in classes], dtype=np.int64)
    return Split(split.images, table[split.labels], split.names)
