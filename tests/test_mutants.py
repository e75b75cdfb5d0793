"""The list of mutants keeps up with the source: each guard is still there once, and so is the test that watches it."""

from __future__ import annotations

import runpy
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def test_every_mutant_still_has_its_guard_and_its_test() -> None:
    listed = runpy.run_path(str(TOP / "tests" / "mutants.py"))
    assert [sentence for mutant in listed["MUTANTS"] for sentence in listed["faults"](mutant)] == []
    assert len(listed["MUTANTS"]) >= 50
