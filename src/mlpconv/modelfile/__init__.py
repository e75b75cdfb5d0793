"""The model file: one safetensors file with weights, configuration, classes and fitted preprocessing.

`tensorfile` reads a safetensors file that may be hostile, `template` builds the described network without memory for
its tensors, `parts` checks that network, preprocessing and classes are compatible, `store` saves and reads files.
"""

from __future__ import annotations

from mlpconv.modelfile.parts import ModelFile
from mlpconv.modelfile.store import is_model_path, read, save

__all__ = ["ModelFile", "is_model_path", "read", "save"]
