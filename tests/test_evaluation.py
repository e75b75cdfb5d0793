"""The figures of an evaluation against scikit-learn, SciPy and formulas written out anew."""

from __future__ import annotations

import json
import warnings
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from mlpconv.data import Split, make_dataset
from mlpconv.errors import DataError, ModelFileError, UsageError
from mlpconv.evaluation import Evaluation, align_labels, evaluate, wilson, worst_mistakes
from mlpconv.inference import Classifier
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing

SIDE = (1, 3, 5)


class Table:
    """Stands for a classifier: image number i, written into its pixels, gets row i of a table of logits."""

    def __init__(self, logits: np.ndarray) -> None:
        self.table = torch.from_numpy(logits)
        self.classes = tuple(f"class {k}" for k in range(logits.shape[1]))
        self.input_size = SIDE
        self.batches: list[int] = []

    def logits(self, pixels: torch.Tensor, *, tta_flip: bool = False) -> torch.Tensor:
        self.batches.append(len(pixels))
        numbers = pixels[:, 0, 0, 0].long() + 256 * pixels[:, 0, 0, 1].long()
        return self.table[numbers] + (1000.0 * torch.eye(self.table.shape[1])[0] if tta_flip else 0)


def make_split(labels: np.ndarray) -> Split:
    images = np.zeros((len(labels), *SIDE), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(len(labels)) % 256, np.arange(len(labels)) // 256
    return Split(images, labels.astype(np.int64), tuple(f"file {i}" for i in range(len(labels))))


def judge(logits: np.ndarray, labels: np.ndarray, **options: Any) -> Evaluation:
    return evaluate(cast("Classifier", Table(logits)), make_split(labels), **options)


def example(n: int = 307, count: int = 7, seed: int = 0, absent: int | None = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) that are right about half of the time, and labels (N,) in which one class is absent."""
    dice = np.random.default_rng(seed)
    labels = dice.integers(0, count, n)
    labels[labels == absent] = (absent or 0) - 1
    logits = dice.normal(size=(n, count)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("n", "count", "absent"), [(307, 7, 3), (311, 7, None), (13, 11, 5), (1, 2, None), (53, 3, 1)])
def test_the_figures_are_those_of_scikit_learn(n: int, count: int, absent: int | None) -> None:
    logits, labels = example(n, count, absent=absent)
    found, names = judge(logits, labels), list(range(count))
    probabilities, predicted = softmax(logits), logits.argmax(1)
    assert found.n == n
    assert found.error == pytest.approx(1 - metrics.accuracy_score(labels, predicted))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, predicted, labels=names))
    assert found.log_loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=names), rel=1e-6)
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
    for name, figures in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(getattr(found.per_class, name), figures, atol=1e-12, err_msg=name)
    if count > 5:
        top = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=names)
        assert found.top5_error == pytest.approx(1 - top)
    else:
        assert found.top5_error is None
    np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-5)
    np.testing.assert_array_equal(found.predicted, predicted)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize("scale", [0.1, 1, 5])
def test_calibration_error_is_that_of_its_definition(scale: float) -> None:
    logits, labels = example(seed=2)
    logits *= scale
    probabilities = softmax(logits)
    confidence, right = probabilities.max(1), logits.argmax(1) == labels
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert judge(logits, labels).calibration_error == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_known_cases() -> None:
    sure = np.array([[50.0, 0.0]] * 10, np.float32)
    assert judge(sure, np.zeros(10, int)).calibration_error == pytest.approx(0, abs=1e-12)
    assert judge(sure, np.ones(10, int)).calibration_error == pytest.approx(1)
    assert judge(sure * 0, np.arange(10) % 2).calibration_error == pytest.approx(0)
    assert judge(sure, np.array([0] * 7 + [1] * 3)).calibration_error == pytest.approx(0.3)
    neighbours = np.log([[0.9, 0.1]] * 10 + [[0.99, 0.01]] * 10)  # too modest in one bin, too sure in the next
    found = judge(neighbours.astype(np.float32), np.array([0] * 10 + [0, 1] * 5))
    assert found.calibration_error == pytest.approx((0.1 + 0.49) / 2, abs=1e-6)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_where_the_score_test_ends(case: tuple[int, int]) -> None:
    """Both ends solve |share - p| = z sqrt(p (1 - p) / n), the equation that the closed formula comes from."""
    count, n = case
    low, high = wilson(count, n)
    z = 1.9599639845400545
    share = count / n
    assert 0 <= low <= share <= high <= 1

    def score(p: float) -> float:
        return (share - p) ** 2 - z * z * p * (1 - p) / n

    assert low == 0 if count == 0 else score(low) == pytest.approx(0, abs=1e-12) and low < share
    assert high == 1 if count == n else score(high) == pytest.approx(0, abs=1e-12) and high > share


def test_wilson_of_published_cases() -> None:
    """Newcombe 1998, Table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for count, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(count, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_is_of_the_error() -> None:
    logits, labels = example()
    found = judge(logits, labels)
    assert found.error_interval == wilson(round(found.error * found.n), found.n)


def test_ties_earn_nothing() -> None:
    """A dead network, all logits alike, is right where the first class is, and has the first five in its top five."""
    labels = np.arange(70) % 7
    found = judge(np.zeros((70, 7), np.float32), labels)
    assert found.error == pytest.approx(6 / 7)
    assert found.top5_error == pytest.approx(2 / 7)
    assert found.log_loss == pytest.approx(np.log(7))


def test_log_loss_is_finite_where_a_probability_is_not() -> None:
    """exp(-2000) is 0 in any precision; its logarithm is -2000."""
    found = judge(np.array([[2000.0, 0.0], [0.0, 0.0]], np.float32), np.array([1, 0]))
    assert found.log_loss == pytest.approx((2000 + np.log(2)) / 2)
    assert found.probabilities[0].tolist() == [1, 0]


@pytest.mark.parametrize("batch_size", [1, 7, 307, 1000])
def test_batches_change_nothing(batch_size: int) -> None:
    logits, labels = example()
    done: list[int] = []
    found = judge(logits, labels, batch_size=batch_size, progress=done.append)
    np.testing.assert_array_equal(found.confusion, judge(logits, labels).confusion)
    assert done == [min(start + batch_size, 307) for start in range(0, 307, batch_size)]


def test_flips_are_passed_on() -> None:
    logits, labels = example()
    assert (judge(logits, labels, tta_flip=True).predicted == 0).all()


def test_mistakes_come_with_the_most_confident_first() -> None:
    logits, labels = example()
    found, split = judge(logits, labels), make_split(labels)
    listed = worst_mistakes(found, split, 10)
    confidence = softmax(logits).max(1)
    wrong = [i for i in np.argsort(-confidence) if logits[i].argmax() != labels[i]]
    assert [mistake.index for mistake in listed] == wrong[:10]
    first = listed[0]
    assert (first.true, first.predicted) == (f"class {labels[wrong[0]]}", f"class {logits[wrong[0]].argmax()}")
    assert first.confidence == pytest.approx(confidence[wrong[0]], rel=1e-5)
    assert first.source == f"file {wrong[0]}"
    assert len(worst_mistakes(found, split, 10_000)) == len(wrong)
    assert worst_mistakes(found, Split(split.images, split.labels), 1)[0].source is None
    assert worst_mistakes(judge(np.eye(7, dtype=np.float32), np.arange(7)), make_split(np.arange(7)), 3) == []


def test_confused_pairs_come_with_the_most_frequent_first() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 0, 0, 2, 2]]
    found = judge(logits, np.array([0, 0, 0, 0, 1, 1, 1, 2]))
    pairs = [(pair.true, pair.predicted, pair.count, pair.share) for pair in found.confused()]
    assert pairs[:2] == [("class 0", "class 1", 2, 0.5), ("class 1", "class 0", 2, pytest.approx(2 / 3))]
    assert pairs[2:] == [("class 0", "class 2", 1, 0.25), ("class 1", "class 2", 1, pytest.approx(1 / 3))]
    assert found.confused(1) == found.confused()[:1]


def test_the_dictionary_is_json_without_the_arrays() -> None:
    logits, labels = example()
    found = judge(logits, labels)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["per_class"][3] == {"class": "class 3", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert json.loads(text)["error_interval"] == list(found.error_interval)
    assert set(found.to_dict()) == {
        *("n", "error", "error_interval", "accuracy", "log_loss", "top5_error", "calibration_error"),
        *("per_class", "most_confused"),
    }


def labelled(*labels: int) -> Split:
    return make_split(np.array(labels))


WRONG: dict[str, tuple[Split, dict[str, Any], type[Exception], str]] = {
    "empty": (labelled(), {}, DataError, "has no images"),
    "a label too high": (labelled(0, 7), {}, DataError, "Labels are 0 to 7; expected 0 to 6"),
    "a label below 0": (labelled(-1, 0), {}, DataError, "Labels are -1 to 0"),
    "another size": (
        Split(np.zeros((1, 1, 3, 4), np.uint8), np.zeros(1, np.int64)),
        {},
        DataError,
        "are 1x3x4 .*expects 1x3x5",
    ),
    "no batch": (labelled(0), {"batch_size": 0}, UsageError, "batch_size is 0"),
    "a data set": (
        cast("Split", make_dataset("a", "bc", {"test": labelled(0)})),
        {},
        UsageError,
        "a Split, got Dataset",
    ),
    "a name": (cast("Split", "digits"), {}, UsageError, "got str: give open_data.NAME..split"),
}


@pytest.mark.parametrize(("split", "options", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_invalid_input_is_refused(split: Split, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(cast("Classifier", Table(np.zeros((9, 7), np.float32))), split, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_no_numbers_is_refused(value: float) -> None:
    logits, labels = example()
    logits[11, 2] = value
    with pytest.raises(ModelFileError, match="NaN or infinity"):
        judge(logits, labels)


def test_labels_are_matched_by_name() -> None:
    model = cast("Classifier", Table(np.zeros((1, 7), np.float32)))
    classes = ("class 5", "class 0", "unknown", "class 2")
    split = labelled(0, 1, 3, 3, 0)
    dataset = make_dataset("photos", classes, {"test": split})
    assert align_labels(split, dataset, model).labels.tolist() == [5, 0, 2, 2, 5]
    assert align_labels(split, dataset, model).names == split.names
    with pytest.raises(DataError, match="does not know the class 'unknown'; it knows 'class 0', .* rename or remove"):
        align_labels(labelled(0, 2), dataset, model)


def test_an_accent_has_one_spelling() -> None:
    model = cast("Classifier", Table(np.zeros((1, 2), np.float32)))
    model.classes = ("caf\u00e9", "nai\u0308f")
    dataset = make_dataset("places", ("cafe\u0301", "na\u00eff"), {"test": labelled(0, 1)})
    assert align_labels(labelled(0, 1), dataset, model).labels.tolist() == [0, 1]


def test_a_real_classifier_on_read_only_images() -> None:
    """What `evaluate` says is what `predict` says, and a file mapped into memory raises no warning."""
    torch.manual_seed(0)
    model = create_model("nin_tiny", width=0.25, num_classes=3, in_channels=1)
    classifier = Classifier(model, Preprocessing.create(["scale"], 1, (7, 11)), ("a", "b", "c"), (1, 7, 11))
    images = np.random.default_rng(0).integers(0, 256, (17, 1, 7, 11), dtype=np.uint8)
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(classifier, Split(images, np.arange(17) % 3), batch_size=5)
    np.testing.assert_allclose(found.probabilities, classifier.predict(images).probabilities, atol=1e-6)


def test_an_evaluation_introduces_itself_in_a_line() -> None:
    labels = np.arange(307) % 7
    result = judge(np.eye(7, dtype=np.float32)[labels], labels)
    low, high = result.error_interval
    assert repr(result) == (
        f"<Evaluation of 307 images, 7 classes: error 0.00% (95 % interval {low:.2%} to {high:.2%})>"
    )
