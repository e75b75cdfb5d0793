"""The list of mutants matches the source, and every mutant is caught (slow)."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")


def test_every_mutant_names_existing_source_and_an_existing_test() -> None:
    names = runpy.run_path(str(SCRIPT))
    assert [problem for mutant in names["MUTANTS"] for problem in names["faults"](mutant)] == []
    assert len(names["MUTANTS"]) >= 50


@pytest.mark.slow
def test_every_mutant_is_caught() -> None:
    result = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
