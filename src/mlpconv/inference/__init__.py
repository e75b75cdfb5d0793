"""The model file: raw pixels in, probabilities out, and nobody has to know how the network was made.

`tensorfile` reads a safetensors file that may be hostile, `modelfile` gives it our meaning, `pixels` takes whatever
people call an image, `classifier` puts them together and answers with `predictions`.
"""

from __future__ import annotations

from mlpconv.inference.classifier import Classifier
from mlpconv.inference.predictions import Prediction, Predictions
from mlpconv.modelfile.store import load, save

__all__ = ["Classifier", "Prediction", "Predictions", "load", "save"]
