"""Inference: images in, class names and probabilities out.

`pixels` reads images of any kind, `classifier` combines preprocessing and network and returns `predictions`; `engine`
runs a network faster on a CPU, `dispatch` decides when to use it.
"""

from __future__ import annotations

from mlpconv.inference.classifier import Classifier, load
from mlpconv.predictions import Prediction, Predictions

__all__ = ["Classifier", "Prediction", "Predictions", "load"]
