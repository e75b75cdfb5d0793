"""The predictions of a classifier: a sequence of labels and probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from mlpconv.errors import UsageError
from mlpconv.predictions import Predictions

ROWS = np.array([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]], np.float32)


def test_each_row_is_a_prediction_with_its_file() -> None:
    predictions = Predictions(ROWS, ["a", "b", "c"], ["x.png", None])
    assert predictions.labels == ("b", "a")
    assert predictions[0].top(2) == [("b", pytest.approx(0.7)), ("a", pytest.approx(0.2))]
    assert str(predictions[0]) == "x.png: b (70.0%)"
    assert [row.label for row in predictions[1:]] == ["a"]


def test_the_number_of_classes_must_fit() -> None:
    with pytest.raises(UsageError, match="2 classes"):
        Predictions(ROWS, ["a", "b"])
