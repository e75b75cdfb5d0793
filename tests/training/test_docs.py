"""The table of settings in docs/training.md matches the recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from mlpconv.training import Recipe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_the_page_lists_every_setting_with_its_default_and_help() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    table = [row for row in rows if row.count("|") == 4 and "json" not in row.split("|")[1]]
    expected = []
    for item in dataclasses.fields(Recipe):
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        expected.append(f"| `{item.name}` | `{json.dumps(default)}` | {item.metadata['help']} |")
    assert table[-len(expected) :] == expected
