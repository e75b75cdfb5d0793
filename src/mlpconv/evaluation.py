"""Evaluate a classifier on labelled images: error, calibration, confusion matrix, metrics per class.

Metrics are named and defined as in scikit-learn. Intervals are 95 % confidence intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mlpconv.data import Dataset, Split
from mlpconv.data.openers import namesakes
from mlpconv.errors import DataError, ModelFileError, UsageError
from mlpconv.inference import Classifier
from mlpconv.text import composed

__all__ = [
    "Confusion", "Evaluation", "Mistake", "PerClass", "align_labels", "batch_for", "compute_metrics", "evaluate",
    "logits_of", "wilson", "worst_mistakes",
]  # fmt: skip

MAX_BATCH, BATCH_VALUES = 128, 1 << 21
BINS = 15
TOP = 5
Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
FloatArray = NDArray[np.float64]


class PerClass(NamedTuple):
    """Metrics of each of the K classes; 0 where the denominator is 0, as in scikit-learn."""

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: NDArray[np.int64]
    """Number of images of the class."""


@dataclass(frozen=True)
class Confusion:
    """A pair of confused classes: true and predicted."""

    true: str
    predicted: str
    count: int
    share: float
    """Fraction of the images of the true class."""


@dataclass(frozen=True)
class Mistake:
    """One misclassified image."""

    index: int
    true: str
    predicted: str
    confidence: float
    source: str | None


@dataclass(frozen=True)
class Evaluation:
    """The result of a classifier on N labelled images of K classes."""

    n: int
    error: float
    """Fraction of images whose most probable class is wrong."""
    error_interval: tuple[float, float]
    """Wilson's 95 % confidence interval of the error."""
    log_loss: float
    """Mean negative log probability of the true class, in nats."""
    top5_error: float | None
    """Fraction of images whose class is not among the five most probable; None for five classes or fewer."""
    calibration_error: float
    """Expected calibration error (ECE): mean gap between confidence and accuracy over 15 bins of equal width."""
    confusion: NDArray[np.int64]
    """(K, K) counts; rows are the true classes, columns the predicted ones."""
    per_class: PerClass
    probabilities: NDArray[np.float32]
    """(N, K) softmax probabilities."""
    predicted: NDArray[np.int64]
    """(N,) most probable classes; the first one if several are equal."""
    labels: NDArray[np.int64]
    """(N,) true classes."""
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
        """Return the `count` most confused pairs of classes, the most frequent first."""
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
        """Return the metrics as JSON-serialisable data, without the arrays of N and K x K numbers."""
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
    """Evaluate a classifier on a split whose labels are indices into its classes (see `align_labels`).

    `tta_flip` averages the logits of each image and its horizontal flip; `progress` is called with the number of images
    done. Raises DataError for an empty split, labels out of range, or images of another size than the classifier's,
    ModelFileError for a network that outputs NaN.
    """
    logits = logits_of(classifier, split, batch_size=batch_size, tta_flip=tta_flip, progress=progress)
    return compute_metrics(logits, np.asarray(split.labels, dtype=np.int64), classifier.classes)


def logits_of(
    classifier: Classifier,
    split: Split,
    *,
    batch_size: int = 128,
    tta_flip: bool = False,
    progress: Callable[[int], None] | None = None,
) -> FloatArray:
    """Return the logits (N, K) of a split, with the arguments and errors of `evaluate`."""
    _check(classifier, split, batch_size)
    batches = []
    for start in range(0, len(split), batch_size):
        pixels = torch.from_numpy(np.array(split.images[start : start + batch_size]))
        batches.append(classifier.logits(pixels, tta_flip=tta_flip).double().cpu())
        if progress is not None:
            progress(min(start + batch_size, len(split)))
    logits: FloatArray = torch.cat(batches).numpy()
    if not np.isfinite(logits).all():
        raise ModelFileError(
            "The network outputs NaN or infinity: its weights are too large. Retrain it, with a lower learning rate."
        )
    return logits


def batch_for(split: Split) -> int:
    """Return how many images to evaluate at a time: 128, and fewer large ones, which would need gigabytes."""
    return max(1, min(MAX_BATCH, BATCH_VALUES // max(1, split.images[:1].size)))


def _check(classifier: Classifier, split: Split, batch_size: int) -> None:
    if not isinstance(split, Split):
        raise UsageError(f"Expected a Split, got {type(split).__name__}: give open_data(NAME).split('test').")
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}; expected an integer of at least 1.")
    if not len(split):
        raise DataError("The split has no images: give one with at least one image.")
    if split.images.shape[1:] != classifier.input_size:
        actual, expected = ("x".join(map(str, size)) for size in (split.images.shape[1:], classifier.input_size))
        raise DataError(
            f"The images are {actual} (channels, rows, columns), the classifier expects {expected}: convert them with "
            "open_data(folder, size=..., channels=...)."
        )
    count = len(classifier.classes)
    if split.labels.min() < 0 or split.labels.max() >= count:
        raise DataError(f"Labels are {split.labels.min()} to {split.labels.max()}; expected 0 to {count - 1}.")


def compute_metrics(logits: FloatArray, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Evaluation:
    """Return all metrics, from logits (N, K) and labels (N,)."""
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
    """Return Wilson's confidence interval (1927) of the proportion `count` of `n`; 95 % for the default `z`."""
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half) if count else 0.0), (min(1.0, centre + half) if count < n else 1.0)


def _rank(logits: FloatArray, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N,) ranks of the true classes, 0 for the first; equal logits rank in the order of the classes."""
    true = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    ranks: NDArray[np.int64] = ((logits > true) | ((logits == true) & earlier)).sum(axis=1)
    return ranks


def _calibration_error(confidence: FloatArray, correct: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over bins (a, b] of equal width (Guo et al., 2017)."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _per_class(confusion: NDArray[np.int64]) -> PerClass:
    correct, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

    def divide(numerator: NDArray[Any], denominator: NDArray[Any]) -> FloatArray:
        ratio: FloatArray = np.divide(numerator, denominator, out=np.zeros(len(correct)), where=denominator > 0)
        return ratio

    return PerClass(
        divide(correct, predicted), divide(correct, support), divide(2 * correct, support + predicted), support
    )


def worst_mistakes(evaluation: Evaluation, split: Split, k: int = 25) -> list[Mistake]:
    """Return the `k` most confident mistakes, the most confident first."""
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


def align_labels(split: Split, dataset: Dataset, classifier: Classifier) -> Split:
    """Return a split of a data set with labels as indices into the classifier's classes, matched by name.

    The data may lack classes. Raises DataError for images of a class that the classifier does not know.
    """
    index = {composed(name): k for k, name in enumerate(classifier.classes)}
    classes = [composed(name) for name in dataset.classes]
    unknown = [classes[k] for k in np.unique(split.labels) if classes[k] not in index]
    if unknown:
        named = f"{'class' if len(unknown) == 1 else 'classes'} {_listed(unknown, 5)}"
        advice = "rename or remove their folders."
        if dataset.published:
            named += f" of the published data set {dataset.name}"
            advice = " ".join(("give a folder with images of those classes.", *namesakes(dataset.name)))
        raise DataError(f"The model does not know the {named}; it knows {_listed(classifier.classes, 20)}: {advice}")
    table = np.array([index.get(name, -1) for name in classes], dtype=np.int64)
    return Split(split.images, table[split.labels], split.names)


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
