"""The predictions of a classifier: probabilities with class names and the file of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mlpconv.errors import ImageError, UsageError
from mlpconv.text import counted, printable

__all__ = ["Prediction", "Predictions"]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    label: str
    """The most probable class."""
    confidence: float
    """Its probability, 0 to 1."""
    probabilities: dict[str, float]
    """The probability of every class, in the model's order; they sum to 1."""
    source: str | None = None
    """The file of the image, or None."""

    def top(self, count: int = 3) -> list[tuple[str, float]]:
        """Return the `count` most probable classes with their probabilities, the most probable first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]

    def __str__(self) -> str:
        prefix = f"{printable(self.source)}: " if self.source is not None else ""
        return f"{prefix}{printable(self.label)} ({self.confidence:.1%})"


class Predictions(Sequence[Prediction]):
    """A sequence with one Prediction per image, in the order of the images; np.asarray gives probabilities (N, K)."""

    def __init__(
        self,
        probabilities: NDArray[np.float32],
        classes: Sequence[str],
        sources: Sequence[str | None] | None = None,
        skipped: Sequence[ImageError] = (),
    ) -> None:
        """Store probabilities (N, K), the K class names, the N files, and the errors of skipped images.

        Raises UsageError if the counts differ.
        """
        self.probabilities = probabilities
        self.classes = tuple(classes)
        self.sources = tuple(sources) if sources is not None else (None,) * len(probabilities)
        self.skipped = tuple(skipped)
        if probabilities.shape != (len(self.sources), len(self.classes)):
            raise UsageError(
                f"Probabilities of shape {probabilities.shape} do not fit {len(self.sources)} images and "
                f"{len(self.classes)} classes: expected one row per image and one column per class."
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the most probable class of each image; the first one if several are equal."""
        return tuple(self.classes[k] for k in self.probabilities.argmax(axis=1))

    @property
    def confidences(self) -> NDArray[np.float32]:
        """Return (N,) probabilities of the most probable class."""
        maxima: NDArray[np.float32] = self.probabilities.max(axis=1)
        return maxima

    def __len__(self) -> int:
        return len(self.probabilities)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: int | slice) -> Prediction | Predictions:
        if isinstance(index, slice):
            return Predictions(self.probabilities[index], self.classes, self.sources[index])
        row = self.probabilities[index]
        best = int(row.argmax())
        by_class = dict(zip(self.classes, row.tolist(), strict=True))
        return Prediction(self.classes[best], float(row[best]), by_class, self.sources[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array: NDArray[Any] = np.array(self.probabilities, dtype=dtype, copy=copy)
        return array

    def __repr__(self) -> str:
        shown = "; ".join(str(prediction) for prediction in self[:3])
        rest = f"; and {len(self) - 3} more" if len(self) > 3 else ""
        return f"<Predictions of {counted(len(self), 'image')}: {shown}{rest}>"
