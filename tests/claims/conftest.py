"""A claim of a few training steps, in a file as a user would write it."""

from __future__ import annotations

from pathlib import Path

import pytest

SMALL = '''
"""A claim of my own."""

from mlpconv.claims import Arm, Claim, Comparison

CLAIM = Claim(
    name="my-claim",
    title="Eight filters beat two",
    words="More filters are better.",
    source="A colleague",
    method="Two networks that differ in the number of filters.",
    overturn="A data set on which two filters are enough.",
    arms={
        "eight": Arm("3x3:8 max 1x1:K gap", epochs=0.1),
        "two": Arm("3x3:2 max 1x1:K gap", epochs=0.1),
    },
    comparisons=(Comparison("eight, against two", "eight", "two", "lower", {"digits": 2.0}),),
    data=("digits",),
)
'''


@pytest.fixture
def claim_path(tmp_path: Path) -> Path:
    path = tmp_path / "my_claim.py"
    path.write_text(SMALL)
    return path
