"""The candidates that were compared before a run, as lines of text and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlpconv.evaluation import wilson
from mlpconv.report.run_contents import number

__all__ = ["COLUMNS", "candidate_rows", "choice_lines", "depth_reason"]

COLUMNS = ("candidate", "pixels", "validation accuracy", "95 % interval", "seconds")


def candidate_rows(choice: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of text for each valid candidate of choice.json."""
    candidates = choice.get("candidates")
    rows: list[tuple[str, ...]] = []
    for candidate in candidates if isinstance(candidates, list) else []:
        if not isinstance(candidate, dict):
            continue
        values = [number(candidate, key) for key in ("size", "correct", "images", "seconds")]
        size, correct, images, seconds = (value if value is not None else -1 for value in values)
        if not 0 <= correct <= images or not images:
            continue
        low, high = wilson(int(correct), int(images))
        name = str(candidate.get("source", "")) + (" (pilot)" if candidate.get("pilot") is True else "")
        interval = f"{low:.1%} to {high:.1%}"
        rows.append((name, f"{size:.0f}", f"{correct / images:.2%}", interval, f"{seconds:.1f}"))
    return rows


def depth_reason(choice: Mapping[str, Any]) -> str:
    """Return how many layers are trained and why, from choice.json; empty if that was not chosen."""
    depth = choice.get("depth")
    return str(depth.get("reason", "")) if isinstance(depth, dict) else ""


def choice_lines(choice: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of the candidates, and the reason for the choice."""
    rows = candidate_rows(choice)
    if rows:
        table = [COLUMNS, *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
        for first, *others in table:
            cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
            yield "  ".join([f"{first:<{widths[0]}}", *cells])
    yield f"start from {choice.get('source')}: {choice.get('reason')}"
    if reason := depth_reason(choice):
        yield reason
