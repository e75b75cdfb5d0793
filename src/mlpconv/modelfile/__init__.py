"""The model file: one safetensors file with weights, configuration, classes and fitted preprocessing.

`tensorfile` reads a safetensors file that may be hostile, `template` builds the network that the file describes without
memory for its tensors, `store` writes and reads the whole, `parts` checks that network, preprocessing and classes
fit together.
"""

from __future__ import annotations

from mlpconv.modelfile.parts import ModelFile
from mlpconv.modelfile.store import read, save

__all__ = ["ModelFile", "read", "save"]
