"""Inference: images in, class names and probabilities out.

`pixels` accepts whatever people call an image, `classifier` puts network and preprocessing together and answers with
`predictions`; `engine` computes a network faster on a CPU, `dispatch` decides when.
"""

from __future__ import annotations

from mlpconv.inference.classifier import Classifier, load
from mlpconv.inference.predictions import Prediction, Predictions

__all__ = ["Classifier", "Prediction", "Predictions", "load"]
