"""One export of the embedded digits, used by all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mlpconv
from mlpconv.deploy.exporting import export

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported network `digits`."""
    return export("digits", tmp_path_factory.mktemp("export") / "digits.onnx").path


@pytest.fixture(scope="session")
def digit_images() -> np.ndarray:
    """(N, 1, 8, 8) held-out digits."""
    return mlpconv.open_data("digits").split("test").images
