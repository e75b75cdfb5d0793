"""Inference: images in, class names and probabilities out.

`pixels` reads images of any kind, `classifier` combines preprocessing and network and returns `predictions`;
`layer_chain` rewrites a network for `engine`, which runs it faster on a CPU; `dispatch` decides when to use it.
"""

from __future__ import annotations

from mlpconv.inference.classifier import Classifier, load
from mlpconv.predictions import Prediction, Predictions

__all__ = ["Classifier", "Prediction", "Predictions", "load"]
