"""What the tests of runs share: a folder of their own, with its own cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a temporary folder, and restore what a run sets for the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))
    yield tmp_path
    torch.set_flush_denormal(False)
