"""Temperature scaling: divide the logits by one number, so that probabilities match frequencies (Guo et al., 2017).

The temperature is fitted on held-out images and folded into the classifier layer, whose weights and bias are divided by
it: the network stays a plain one, and its predicted classes stay the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpconv import inference, modelfile
from mlpconv.data import Split
from mlpconv.errors import UsageError
from mlpconv.evaluation import batch_for, compute_metrics, logits_of
from mlpconv.inference import Classifier
from mlpconv.models.base import Network

__all__ = ["KEY", "TemperatureFit", "calibrate", "calibrate_file", "calibrate_to", "check_scalable", "fit_temperature"]

KEY = "calibration"
"""The entry of a model file's record."""
FEW = 100  # images
LOWEST, HIGHEST = 0.05, 20.0
HALVINGS = 50  # of the interval of ln(temperature)
HOMOGENEOUS = ("relu", "leaky_relu", "maxout", "identity")  # f(x / T) = f(x) / T


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature, and what it changes on the images that it was fitted on: before and after."""

    temperature: float
    images: int
    log_loss: tuple[float, float]
    """Mean negative log probability of the true class, in nats."""
    calibration_error: tuple[float, float]
    """Expected calibration error over 15 bins."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, the inverse of `from_dict`."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, value: object) -> TemperatureFit | None:
        """Rebuild the fit from `to_dict`; return None for any other value."""
        try:
            values = dict(value) if isinstance(value, Mapping) else {}
            (loss, lower), (error, less) = values["log_loss"], values["calibration_error"]
            numbers = [float(number) for number in (values["temperature"], loss, lower, error, less)]
            images = int(values["images"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        if not all(map(math.isfinite, numbers)):
            return None
        return cls(numbers[0], images, (numbers[1], numbers[2]), (numbers[3], numbers[4]))

    def __str__(self) -> str:
        (loss, lower), (error, less) = self.log_loss, self.calibration_error
        few = f" (fewer than {FEW}, so it is uncertain)" if self.images < FEW else ""
        rises = "; the loss rises, as so few images do not show that such confidence is right" if lower > loss else ""
        return (
            f"temperature {self.temperature:.3f} fitted on {self.images:,} held-out images{few}: log loss {loss:.4f} "
            f"to {lower:.4f}, calibration error {error:.4f} to {less:.4f}, the same classes{rises}"
        )


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature of the least log loss of logits (N, K) with labels (N,), within 0.05 to 20.

    As in Platt scaling (1999), the targets are not quite certain, 1 - 1 / (N + 2): if all N images are classified
    correctly, their number limits the confidence. The log loss is convex in 1 / temperature, so that its slope has one
    root, which is found by bisection.
    """
    count = len(labels)
    uncertain = 1 / (count + 2)
    target = float(((1 - uncertain) * logits[np.arange(count), labels] + uncertain * logits.mean(1)).mean())
    shifted = logits - logits.max(1, keepdims=True)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        weights = np.exp(shifted / math.exp(middle))
        expected = float(((weights * logits).sum(1) / weights.sum(1)).mean())
        # The slope by 1 / temperature: positive where the predictions are too confident.
        low, high = (middle, high) if expected > target else (low, middle)
    return math.exp((low + high) / 2)


def calibrate(classifier: Classifier, split: Split) -> tuple[Classifier, TemperatureFit]:
    """Return a copy of a classifier whose logits are divided by the temperature that fits a held-out split best.

    Its `info["calibration"]` holds the temperature, and log loss and calibration error of these images before and
    after. Raises UsageError for a network whose classifier layer cannot be scaled, and what `evaluate` raises.
    """
    check_scalable(classifier.model)
    logits, labels = logits_of(classifier, split, batch_size=batch_for(split)), np.asarray(split.labels, np.int64)
    temperature = fit_temperature(logits, labels)
    before, after = (compute_metrics(values, labels, classifier.classes) for values in (logits, logits / temperature))
    fit = TemperatureFit(
        temperature,
        len(labels),
        (before.log_loss, after.log_loss),
        (before.calibration_error, after.calibration_error),
    )
    network = copy.deepcopy(classifier.model)
    with torch.no_grad():
        for parameter in network.last_layer.parameters():
            parameter.div_(temperature)
    info = classifier.info | {KEY: fit.to_dict()}
    return Classifier(network, classifier.preprocessing, classifier.classes, classifier.input_size, info), fit


def calibrate_file(path: Path, split: Split) -> TemperatureFit:
    """Calibrate a model file in place on a held-out split; one that is calibrated stays as it is."""
    classifier = inference.load(path)
    known = TemperatureFit.from_dict(classifier.info.get(KEY))
    return calibrate_to(classifier, split, path)[1] if known is None else known


def calibrate_to(classifier: Classifier, split: Split, out: Path) -> tuple[Classifier, TemperatureFit]:
    """Do `calibrate`, and write the result to a model file."""
    calibrated, fit = calibrate(classifier, split)
    calibrated.info.pop("versions", None)  # saving adds the current versions
    modelfile.save(
        out,
        calibrated.model,
        calibrated.preprocessing,
        classes=calibrated.classes,
        input_size=calibrated.input_size,
        info=calibrated.info,
    )
    return calibrated, fit


def check_scalable(network: Network) -> None:
    """Raise UsageError unless the logits of a network are proportional to its classifier layer."""
    activation = str(getattr(network.config, "activation", "relu"))
    if getattr(network.config, "last_relu", False) and activation not in HOMOGENEOUS:
        raise UsageError(
            f"{network.config.name} has {activation} after its last layer, so no temperature can be folded into it: "
            "train it with last_relu=False."
        )
